// An OpenID Connect issuer with the clients that its argument lists, for the browser test. Any
// name and password sign in; the name is the subject.
import http from 'node:http';
import { Provider } from 'oidc-provider';

const { clients, claims } = JSON.parse(process.argv[2]);
const server = http.createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients,
    claims: { openid: ['sub', ...Object.keys(claims)] },
    conformIdTokenClaims: false,
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id, ...claims }) }),
    pkce: { required: () => true },
    cookies: { keys: ['for tests only'] },
  });
  provider.on('server_error', (ctx, err) => console.error(err));
  server.on('request', provider.callback());
  console.log(issuer);
});
