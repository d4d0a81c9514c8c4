// An authorization server with the clients that its argument lists. It issues refresh tokens, replaces them at each use, and revokes tokens (RFC 7009). Any name and password sign in.
import http from 'node:http';
import { Provider } from 'oidc-provider';

const clients = JSON.parse(process.argv[2]);
const server = http.createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: clients.map((c) => ({ ...c, grant_types: ['authorization_code', 'refresh_token'] })),
    features: { revocation: { enabled: true } },
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    pkce: { required: () => true },
    rotateRefreshToken: true,
    ttl: { AccessToken: 600 },
    cookies: { keys: ['for tests only'] },
  });
  provider.on('server_error', (ctx, err) => console.error(err));
  server.on('request', provider.callback());
  console.log(issuer);
});
