// What a page does beyond links and forms: it updates while it is open, keeps what was typed
// when a form is refused, and shows dialogs. Everything else works without this file.

const $ = (selector, within = document) => [...within.querySelectorAll(selector)]
const say = text => { document.getElementById('said').textContent = text }
const parse = html => new DOMParser().parseFromString(html, 'text/html')

// enhance gives the elements below a node what they only have with this file.
function enhance(within) {
  for (const el of $('.copy, [data-eye], .file', within)) el.hidden = false
}

document.addEventListener('click', async event => {
  const copy = event.target.closest('[data-copy]')
  if (copy) {
    await navigator.clipboard.writeText(copy.dataset.copy)
    copy.textContent = 'Copied'
    say('Copied')
    setTimeout(() => { copy.textContent = 'Copy' }, 2000)
  }
  const eye = event.target.closest('[data-eye]')
  if (eye) {
    const input = document.getElementById(eye.dataset.eye)
    const show = input.type === 'password'
    input.type = show ? 'text' : 'password'
    eye.textContent = show ? 'Hide' : 'Show'
    eye.setAttribute('aria-pressed', show)
  }
  const opener = event.target.closest('a[data-dialog]')
  if (opener && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault()
    openDialog(opener)
  }
  if (event.target.closest('dialog [data-close]')) {
    event.preventDefault()
    event.target.closest('dialog').close()
  }
  for (const menu of $('details.menu[open]')) if (!menu.contains(event.target)) menu.open = false
})

// openDialog shows the content of another page above this one, and gives the focus back.
async function openDialog(opener) {
  const answer = await fetch(opener.href)
  if (!answer.ok) return location.assign(opener.href)
  const dialog = document.createElement('dialog')
  dialog.append(...parse(await answer.text()).querySelector('main').children)
  const title = dialog.querySelector('h1')
  if (title) { title.id = 'dialog-title'; dialog.setAttribute('aria-labelledby', title.id) }
  dialog.addEventListener('close', () => { dialog.remove(); opener.focus() })
  document.body.append(dialog)
  dialog.showModal()
  dialog.querySelector('[data-close]')?.focus()
}

document.addEventListener('change', event => {
  if (event.target.matches('[data-submit]')) event.target.form.requestSubmit()
  if (event.target.dataset.into) readFile(event.target)
})

async function readFile(input) {
  const [file] = input.files
  if (file) document.getElementById(input.dataset.into).value = await file.text()
}

document.addEventListener('submit', event => {
  const form = event.target
  if (form.dataset.sure && !confirm(form.dataset.sure)) return event.preventDefault()
  if (form.method !== 'post') return
  const button = event.submitter
  if (form.dataset.stay !== undefined) {
    event.preventDefault()
    send(form, button)
  } else if (button && form.dataset.busy) {
    busy(button, form.dataset.busy)
  }
})

// busy shows that a form is on its way. The button stays enabled until then: its value is sent.
function busy(button, text) {
  const label = button.textContent
  setTimeout(() => { button.disabled = true; button.textContent = text })
  say(text)
  return () => { button.disabled = false; button.textContent = label }
}

// send posts a form. When it is refused, the reasons appear beside what was typed.
async function send(form, button) {
  const body = new URLSearchParams(new FormData(form, button))
  const done = busy(button, form.dataset.busy ?? 'Working…')
  try {
    const answer = await fetch(form.action, { method: 'POST', body })
    if (answer.redirected) return location.assign(answer.url)
    const page = parse(await answer.text())
    const again = page.querySelector('form[data-stay]')
    if (!again) { // another page is the answer
      document.querySelector('main').replaceWith(page.querySelector('main'))
      enhance(document)
      watch()
      return document.querySelector('main').focus()
    }
    document.getElementById('notices').replaceWith(page.getElementById('notices'))
    for (const part of $('[data-sync]', again)) {
      document.getElementById(part.id)?.replaceWith(part)
    }
    form.elements._command.value = again.elements._command.value
    for (const error of $('.error', form)) {
      const field = error.closest('.field')
      field.classList.toggle('wrong', error.textContent !== '')
      field.querySelector('input, select, textarea')?.setAttribute('aria-invalid', error.textContent !== '')
    }
    (form.querySelector('#refusal, .wrong input') ?? document.getElementById('refusal'))?.focus()
  } catch {
    say('The service did not answer. Nothing is known about the outcome: try again.')
    alert('The service did not answer. Try again: a form that was saved is not saved twice.')
  } finally {
    done()
  }
}

// refresh reads the page again and replaces what has changed of it. What somebody is using stays.
let reading = false
let stale = false
async function refresh() {
  if (reading) { stale = true; return }
  reading = true
  try {
    const address = new URL(location.href)
    address.searchParams.delete('did')
    address.searchParams.delete('seq')
    const answer = await fetch(address)
    if (answer.redirected) return location.reload()
    if (!answer.ok) return
    const page = parse(await answer.text())
    for (const part of $('[data-live]')) {
      const fresh = page.getElementById(part.id)
      if (!fresh || fresh.isEqualNode(part.pristine ?? part)) continue
      const held = part.contains(document.activeElement) ? trail(document.activeElement, part) : null
      const scrolls = $('.scroll', part).map(el => el.scrollLeft)
      part.pristine = fresh.cloneNode(true)
      part.replaceChildren(...fresh.childNodes)
      enhance(part)
      $('.scroll', part).forEach((el, i) => { el.scrollLeft = scrolls[i] ?? 0 })
      if (held) find(held, part)?.focus({ preventScroll: true })
    }
  } finally {
    reading = false
    if (stale) { stale = false; refresh() }
  }
}

// trail and find name the element with the focus before and after its surroundings are replaced.
const trail = (el, within) => el.id ? { id: el.id } : { href: el.getAttribute('href'), index: $('a, button, summary', within).indexOf(el) }
const find = (held, within) => held.id ? document.getElementById(held.id)
  : $('a', within).find(a => held.href && a.getAttribute('href') === held.href) ?? $('a, button, summary', within)[held.index]

// follow keeps a stream of changes open while somebody looks: a browser has few connections.
function follow() {
  const address = document.body.dataset.events
  if (!address) return
  for (const part of $('[data-live]')) part.pristine = part.cloneNode(true)
  let source = null
  let before = false
  const open = () => {
    if (source || document.hidden) return
    source = new EventSource(address)
    source.addEventListener('open', () => { if (before) refresh(); before = true; document.body.dataset.following = '' })
    source.addEventListener('change', refresh)
    source.addEventListener('end', () => { source.close(); location.reload() })
  }
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) { source?.close(); source = null } else open()
  })
  open()
}

// watch looks at a connection until the provider has answered.
let watching = 0
function watch() {
  clearTimeout(watching)
  const part = document.querySelector('[data-poll]')
  if (!part || part.dataset.over !== undefined) return
  if (part.dataset.goto) return location.assign(part.dataset.goto)
  watching = setTimeout(async () => {
    const answer = await fetch(part.dataset.poll).catch(() => null)
    const fresh = answer?.ok && parse(await answer.text()).querySelector('[data-poll]')
    if (fresh && !fresh.querySelector('p[role=status] a') && !part.querySelector('form')) {
      part.replaceWith(fresh)
      enhance(fresh)
    }
    watch()
  }, 1200)
}

enhance(document)
follow()
watch()
document.getElementById('refusal')?.focus()
const shown = new URL(location.href)
if (shown.searchParams.has('did')) {
  shown.searchParams.delete('did')
  shown.searchParams.delete('seq')
  history.replaceState(null, '', shown)
}
