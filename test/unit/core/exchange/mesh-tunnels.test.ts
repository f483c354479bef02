// Who may open a connection through a tunnel to a workload, each time anew: certificates expire while tunnels live.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ClientCertificate } from '../../../../core/exchange/client-certificate.ts';
import type { ProxyContext } from '../../../../core/exchange/context.ts';
import { Mesh } from '../../../../core/exchange/mesh.ts';
import { WorkloadRuntime } from '../../../../core/exchange/mesh-runtime.ts';
import { Detail } from '../../../../core/exchange/reasons.ts';
import type { Connection } from '../../../../core/io/connection.ts';

const NOW_MS = 1_000_000;
const client = { verified: true, spiffeId: 'spiffe://cluster.local/ns/shop/sa/web', notAfterMs: NOW_MS + 1 };

function admit(certificate: Partial<ClientCertificate> | null, hasOwn = true): number {
  const workload = new WorkloadRuntime({
    ...{ uid: 'w', name: 'shop/w', identity: 'spiffe://cluster.local/ns/shop/sa/w', addresses: [], namespaceFd: -1 },
    ...{ mark: 0, certificate: null, strict: true, slot: -1, connectionsMax: 0, connectionsPerSecondMax: 0 },
    ...{ bufferPercentMax: 0, authorization: null },
  });
  if (hasOwn) workload.tls = {} as typeof workload.tls;
  const mesh = new Mesh({ reactor: { wallMs: NOW_MS, nowMs: 0 } } as ProxyContext);
  return mesh.admitTunnelled({ workload, clientCertificate: certificate } as unknown as Connection);
}

test('a client of the trust domain with a valid certificate is let in', () => {
  assert.equal(admit(client), 0);
});

test('nobody else is', () => {
  const refused: [what: string, certificate: Partial<ClientCertificate> | null][] = [
    ['no certificate', null],
    ['not verified', { ...client, verified: false }],
    ['no identity', { ...client, spiffeId: '' }],
    ['another trust domain', { ...client, spiffeId: 'spiffe://other/ns/shop/sa/web' }],
    ['a trust domain that begins alike', { ...client, spiffeId: 'spiffe://cluster.local.evil/ns/shop/sa/web' }],
    ['expired since the handshake', { ...client, notAfterMs: NOW_MS }],
  ];
  for (const [what, certificate] of refused) assert.equal(admit(certificate), Detail.TUNNEL_IDENTITY, what);
});

test('a workload that has no certificate any more lets nobody in', () => {
  assert.equal(admit(client, false), Detail.TUNNEL_IDENTITY);
});
