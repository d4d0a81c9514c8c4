// Shows /openapi.json. Whatever stands in the document is put into the page as
// text, never as markup.
"use strict";

const methods = ["get", "post", "put", "patch", "delete"];
let doc;

// make makes an element with attributes and children; a string is text.
function make(name, attributes, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) e.setAttribute(key, value);
  e.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return e;
}

// follow returns what a reference within the document leads to.
function follow(thing) {
  while (thing && thing.$ref) {
    thing = thing.$ref.slice(2).split("/").reduce(
      (at, step) => at && at[step.replaceAll("~1", "/").replaceAll("~0", "~")], doc);
  }
  return thing || {};
}

const nameOf = (schema) => (schema && schema.$ref ? schema.$ref.split("/").pop() : "");

// typeOf says in a few words what a schema allows.
function typeOf(schema) {
  const s = follow(schema);
  let type = [].concat(s.type || "any").filter((t) => t !== "null").join(" or ");
  if (type === "array") type = "array of " + typeOf(s.items);
  else if (nameOf(schema)) type = nameOf(schema);
  else if (s.format) type += " (" + s.format + ")";
  if (s.enum) type += ": " + s.enum.map((v) => JSON.stringify(v)).join(", ");
  if ("const" in s) type = JSON.stringify(s.const);
  return type;
}

// inner is the schema of an object within a schema, or null: itself, the items of
// an array, or the values of a map.
function inner(schema) {
  let s = follow(schema);
  while (s.type === "array" || (s.additionalProperties && s.additionalProperties !== true && !s.properties)) {
    schema = s.type === "array" ? s.items : s.additionalProperties;
    s = follow(schema);
  }
  return s.properties ? schema : null;
}

function table(head, rows) {
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((h) => make("th", { scope: "col" }, h)))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((c) => make("td", {}, c))))));
}

// members lists the members of an object; those that are objects fold out below.
function members(schema, above) {
  const s = follow(inner(schema) || schema);
  const all = Object.entries(s.properties || {}).filter(([name]) => name !== "$schema");
  if (!all.length) return make("p", { class: "quiet" }, s.description || "No members.");
  const needed = s.required || [];
  const box = make("div", {});
  if (s.description) box.append(make("p", { class: "quiet" }, s.description));
  box.append(table(["member", "type", ""], all.map(([name, p]) => [
    name, typeOf(p) + (needed.includes(name) ? "" : ", optional"), p.description || follow(p).description || "",
  ])));
  for (const [name, p] of all) {
    const held = inner(p);
    if (!held || above.includes(follow(held))) continue;
    box.append(make("details", {}, make("summary", {}, make("code", {}, name)), members(held, [...above, follow(held)])));
  }
  return box;
}

// quote writes a word for a POSIX shell.
const quote = (word) => "'" + word.replaceAll("'", "'\\''") + "'";

// example is the value that stands in the document for a parameter or a body.
function example(thing) {
  if (thing.example !== undefined) return thing.example;
  const first = Object.values(thing.examples || {})[0];
  return first === undefined ? undefined : follow(first).value;
}

// curl is the documented example as a command line.
function curl(method, path, operation, parameters, media, body) {
  const query = [];
  const more = [];
  for (const p of parameters) {
    const value = example(p);
    if (value === undefined) continue;
    if (p.in === "path") path = path.replace("{" + p.name + "}", encodeURIComponent(value));
    if (p.in === "query") query.push(encodeURIComponent(p.name) + "=" + encodeURIComponent(value));
    if (p.in === "header") more.push("-H " + quote(p.name + ": " + value));
  }
  if (query.length) path += "?" + query.join("&");
  const words = ["curl -g"];
  if (method !== "get") words.push("-X " + method.toUpperCase());
  if (!(operation.security && operation.security.length === 0)) words.push('-u "me:$CREDSTREAM_KEY"');
  words.push(quote(location.origin + path), ...more);
  if (body !== undefined) words.push("-H " + quote("Content-Type: " + media), "--data " + quote(JSON.stringify(body)));
  return words.join(" \\\n  ");
}

function answers(operation) {
  return Object.entries(operation.responses || {}).map(([status, response]) => {
    const r = follow(response);
    const box = make("details", {}, make("summary", {}, make("code", {}, status), " " + (r.description || "")));
    for (const [media, content] of Object.entries(r.content || {})) {
      box.append(make("p", { class: "quiet" }, media));
      if (content.schema && inner(content.schema)) box.append(members(content.schema, [follow(inner(content.schema))]));
      else if (follow(content.schema).description) box.append(make("p", {}, follow(content.schema).description));
      const shown = example(content);
      if (shown !== undefined) box.append(make("pre", {}, JSON.stringify(shown, null, 2)));
    }
    return box;
  });
}

function section(path, method, operation, shared) {
  const id = operation.operationId || method + path;
  const parameters = [...(shared || []), ...(operation.parameters || [])].map(follow);
  const box = make("section", { id },
    make("h2", {}, make("a", { href: "#" + encodeURIComponent(id) }, id)),
    make("p", { class: "path" }, make("span", { class: "method " + method }, method.toUpperCase()), " " + path),
    make("p", {}, operation.summary || ""),
    operation.description ? make("p", { class: "quiet" }, operation.description) : null);
  if (parameters.length) {
    box.append(make("h3", {}, "Parameters"), table(["name", "in", "type", ""], parameters.map((p) => [
      p.name, p.in, typeOf(p.schema) + (p.required ? "" : ", optional"), p.description || "",
    ])));
  }
  const content = follow(operation.requestBody).content || {};
  const media = Object.keys(content)[0];
  if (media) box.append(make("h3", {}, "Body"), members(content[media].schema, [follow(content[media].schema)]));
  const body = media ? example(content[media]) : undefined;
  box.append(make("h3", {}, "Example"), make("pre", {}, curl(method, path, operation, parameters, media, body)));
  if (body !== undefined) box.append(make("pre", {}, JSON.stringify(body, null, 2)));
  box.append(make("h3", {}, "Answers"), ...answers(operation));
  return { id, box, tag: (operation.tags || ["other"])[0], words: [id, method, path, operation.summary].join(" ").toLowerCase() };
}

function draw() {
  const all = [];
  for (const [path, item] of Object.entries(doc.paths)) {
    for (const method of methods) {
      if (item[method]) all.push(section(path, method, item[method], item.parameters));
    }
  }
  all.sort((a, b) => a.tag.localeCompare(b.tag) || a.id.localeCompare(b.id));
  const list = document.getElementById("list");
  const groups = new Map();
  for (const s of all) {
    if (!groups.has(s.tag)) {
      const group = make("ul", {});
      list.append(make("h2", {}, s.tag), group);
      groups.set(s.tag, group);
    }
    s.line = make("li", {}, make("a", { href: "#" + encodeURIComponent(s.id) }, s.id));
    groups.get(s.tag).append(s.line);
  }
  document.getElementById("title").textContent = doc.info.title + " " + (doc.info.version || "");
  document.getElementById("about").replaceChildren(doc.info.description || "", " ",
    make("a", { href: "/openapi.json" }, "The document"), ".");
  document.getElementById("operations").append(...all.map((s) => s.box));
  document.getElementById("find").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const s of all) {
      s.box.hidden = s.line.hidden = !words.every((w) => s.words.includes(w));
    }
  });
  if (location.hash) {
    const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (at) at.scrollIntoView();
  }
}

fetch("/openapi.json")
  .then((answer) => {
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.json();
  })
  .then((read) => {
    doc = read;
    draw();
  })
  .catch(() => {
    document.getElementById("about").textContent = "The document could not be read. Load the page again.";
  });
