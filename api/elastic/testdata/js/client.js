// Elasticsearch's official JavaScript client, unchanged, against the service at URL with the API key KEY.
import assert from 'node:assert/strict'
import { Client } from '@elastic/elasticsearch'

const { URL: node, KEY: key } = process.env
const encode = (id, key) => Buffer.from(`${id}:${key}`).toString('base64')
const refused = (status, reason) => (err) => {
  assert.equal(err.statusCode, status)
  assert.match(err.body.error.reason, reason)
  return true
}

for (const auth of [{ username: 'elastic', password: key }, { apiKey: { id: 'an-id', api_key: key } }, { apiKey: encode('an-id', key) }, { bearer: key }]) {
  const es = new Client({ node, auth })
  assert.equal((await es.info()).version.number, '9.2.0')
  assert.equal(await es.ping(), true)
  assert.equal((await es.connector.put({ connector_id: 'wiki', name: 'Wiki', index_name: 'search-wiki', is_native: true })).result, 'created')
  const { id } = await es.connector.secretPost({ value: encode('k1', 'v') })
  assert.equal((await es.connector.secretPut({ id: 's1', value: 'v1' })).result, 'created')
  assert.equal((await es.connector.secretPut({ id: 's1', value: 'v2' })).result, 'updated')
  assert.deepEqual(await es.connector.secretGet({ id: 's1' }), { id: 's1', value: 'v2' })
  const update = (body) => es.connector.updateApiKeyId({ connector_id: 'wiki', ...body })
  assert.equal((await update({ api_key_id: 'k1' })).result, 'updated')
  assert.equal((await update({ api_key_secret_id: id })).result, 'updated')
  assert.equal((await update({ api_key_id: 'k1', api_key_secret_id: id })).result, 'noop')
  assert.equal((await update({ api_key_id: null })).result, 'noop')
  await assert.rejects(update({ api_key_id: {} }), refused(400, /wrong type/))
  await assert.rejects(update({ api_key_id: 'k2' }), refused(400, /not api_key_id/))
  await assert.rejects(es.connector.updateApiKeyId({ connector_id: 'none', api_key_id: 'k' }), refused(404, /connector \[none\] not found/))
  await assert.rejects(es.connector.secretGet({ id: 'none' }), refused(404, /No secret with id \[none\]/))
  await assert.rejects(es.connector.secretDelete({ id }), refused(409, /in use by connectors: wiki/))
  const wiki = await es.connector.get({ connector_id: 'wiki' })
  assert.deepEqual([wiki.name, wiki.api_key_id, wiki.api_key_secret_id, wiki.status], ['Wiki', 'k1', id, 'created'])
  assert.equal((await es.connector.list()).count, 1)
  assert.equal((await es.connector.delete({ connector_id: 'wiki' })).acknowledged, true)
  for (const gone of [id, 's1']) assert.equal((await es.connector.secretDelete({ id: gone })).deleted, true)
}
const wrong = new Client({ node, auth: { username: 'elastic', password: 'wrong' } })
await assert.rejects(wrong.connector.get({ connector_id: 'wiki' }), refused(401, /API key/))
console.log('all calls answered as expected')
