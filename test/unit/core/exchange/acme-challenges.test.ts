// The answers to ACME challenges: only open ones, only under their own path.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ACME_PATH, AcmeChallenges } from '../../../../core/exchange/acme-challenges.ts';
import { CLIENT_HELLO_BYTES_MAX, ClientHello, parseClientHello } from '../../../../core/tls/client-hello.ts';
import { clientHello } from '../../../integration/tls/support.ts';
import { makeCertificate } from '../tls/certificates.ts';

/** The answer to a path that lies somewhere in memory. */
function answer(challenges: AcmeChallenges, path: string): string | null {
  const memory = Buffer.from(`GET ${path} HTTP/1.1`);
  return challenges.answer(memory, 4, path.length);
}

const http = (token: string) => ({ token, keyAuthorization: `${token}.print` });

test('an open challenge is answered at its path and nowhere else', () => {
  const challenges = new AcmeChallenges();
  assert.equal(answer(challenges, `${ACME_PATH}a`), null);
  challenges.use({ http: [http('a'), http('b')], tls: [] });
  assert.equal(answer(challenges, `${ACME_PATH}a`), 'a.print');
  assert.equal(answer(challenges, `${ACME_PATH}b`), 'b.print');
  for (const path of [
    '/',
    ACME_PATH,
    `${ACME_PATH}c`,
    `${ACME_PATH}a/`,
    `${ACME_PATH}a?x`,
    '/.well-known/acme-other/a',
  ]) {
    assert.equal(answer(challenges, path), null, path);
  }
});

test('newer challenges take the place of those before', () => {
  const challenges = new AcmeChallenges();
  challenges.use({ http: [http('a')], tls: [] });
  challenges.use({ http: [http('b')], tls: [] });
  assert.equal(answer(challenges, `${ACME_PATH}a`), null);
  assert.equal(answer(challenges, `${ACME_PATH}b`), 'b.print');
  challenges.use({ http: [], tls: [] });
  assert.equal(answer(challenges, `${ACME_PATH}b`), null);
});

test('a handshake is a challenge only if it asks for the name and for acme-tls/1', async () => {
  const { pem, keyPem } = makeCertificate({ name: 'proof', names: ['dns:new.example'] });
  const challenges = new AcmeChallenges();
  const asked = async (servername: string, ALPNProtocols: string[]): Promise<boolean> => {
    const bytes = await clientHello({ servername, ALPNProtocols });
    const memory = Buffer.alloc(3 * CLIENT_HELLO_BYTES_MAX);
    bytes.copy(memory);
    const hello = new ClientHello();
    assert.ok(parseClientHello(memory, 0, bytes.length, CLIENT_HELLO_BYTES_MAX, hello) > 0);
    return challenges.challengeFor(servername, memory, hello) !== null;
  };
  assert.equal(await asked('new.example', ['acme-tls/1']), false);
  challenges.use({ http: [], tls: [{ hostname: 'new.example', chainPem: pem, keyPem }] });
  assert.equal(await asked('new.example', ['acme-tls/1']), true);
  assert.equal(await asked('new.example', ['http/1.1']), false);
  assert.equal(await asked('other.example', ['acme-tls/1']), false);
  challenges.use({ http: [], tls: [] });
  assert.equal(await asked('new.example', ['acme-tls/1']), false);
});
