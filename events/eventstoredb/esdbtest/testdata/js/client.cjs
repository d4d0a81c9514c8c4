// Exercises the server with the official Node client: append, conflict, read, subscribe, delete.
const { EventStoreDBClient, jsonEvent, NO_STREAM, FORWARDS, BACKWARDS, START, streamNameFilter } = require("@eventstore/db-client");
const assert = require("node:assert");

(async () => {
  const client = EventStoreDBClient.connectionString(process.argv[2]);
  const made = (n) => jsonEvent({ type: "credstream.test", data: { n } });
  const first = await client.appendToStream("node-a", made(0), { expectedRevision: NO_STREAM });
  assert.equal(first.nextExpectedRevision, 0n);
  await client.appendToStream("node-a", made(1), { expectedRevision: 0n });
  await assert.rejects(client.appendToStream("node-a", made(2), { expectedRevision: 0n }), { type: "wrong-expected-version" });
  await client.appendToStream("other", made(9));
  const read = async (options) => {
    const all = [];
    for await (const { event } of client.readStream("node-a", options)) all.push(event.data.n);
    return all;
  };
  assert.deepEqual(await read({ direction: FORWARDS }), [0, 1]);
  assert.deepEqual(await read({ direction: BACKWARDS, fromRevision: "end", maxCount: 1 }), [1]);
  await assert.rejects(async () => { for await (const _ of client.readStream("missing")); }, { type: "stream-not-found" });
  const got = [];
  const subscription = client.subscribeToAll({ fromPosition: START, filter: streamNameFilter({ prefixes: ["node-"] }) });
  for await (const { event } of subscription) {
    got.push(event.data.n);
    if (got.length === 2) await client.appendToStream("node-a", made(2));
    if (got.length === 3) break;
  }
  assert.deepEqual(got, [0, 1, 2]);
  await client.tombstoneStream("node-a");
  await assert.rejects(read({ direction: FORWARDS }), { type: "stream-deleted" });
  console.log("node client: ok");
  await client.dispose();
})().catch((err) => { console.error(err); process.exit(1); });
