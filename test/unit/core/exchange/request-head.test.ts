// The cases of request-head.md: a request, and exactly what leaves for the upstream.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ClientCertificate } from '../../../../core/exchange/client-certificate.ts';
import type { PeerCertificate } from '../../../../core/tls/peer.ts';
import { unescapeBytes } from '../http1/case-file.ts';
import { type RewrittenRequest, rewriteRequest } from './request-head-fixture.ts';
import { clientFrom, runtimeOf } from './support.ts';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

interface Case {
  name: string;
  request: Buffer;
  settings: Map<string, string>;
  output: string;
  positions: [name: string, value: string][];
}

const settingNames = [
  ...['trustedHops', 'forwardedHeaders', 'requestIdHeader', 'via'],
  ...['client', 'scheme', 'endpoint', 'upgrade', 'clientCertificate'],
];
const blockNames = ['request', 'settings', 'output', 'positions'];

function parseCase(section: string): Case {
  const name = section.slice(0, section.indexOf('\n')).trim();
  const blocks = new Map<string, string[]>();
  for (const [, kind, content] of section.matchAll(/^```(\w+)\n([\s\S]*?)^```$/gm)) {
    assert.ok(blockNames.includes(kind) && !blocks.has(kind), `${name}: block ${kind}`);
    blocks.set(kind, content.split('\n').slice(0, -1));
  }
  assert.ok(blocks.has('request') && blocks.has('output'), `${name}: incomplete`);
  const settings = new Map<string, string>();
  for (const line of blocks.get('settings') ?? []) {
    const equals = line.indexOf('=');
    assert.ok(settingNames.includes(line.slice(0, equals)), `${name}: setting ${line}`);
    settings.set(line.slice(0, equals), line.slice(equals + 1));
  }
  return {
    name,
    request: Buffer.from(unescapeBytes(blocks.get('request')!.join('')), 'latin1'),
    settings,
    output: unescapeBytes(blocks.get('output')!.join('')),
    positions: (blocks.get('positions') ?? []).map((line) => {
      const [key] = line.split(' ', 1);
      return [key, line.slice(key.length + 1)];
    }),
  };
}

function run({ request, settings }: Case): RewrittenRequest {
  const runtime = runtimeOf({
    trustedHops: Number(settings.get('trustedHops') ?? 0),
    forwardedHeaders: settings.get('forwardedHeaders') === 'true',
    requestIdHeader: settings.get('requestIdHeader') === 'true',
    via: settings.get('via') ?? '',
  });
  const scheme = settings.get('scheme') === 'https' ? 'https' : 'http';
  const client = clientFrom(settings.get('client') ?? '203.0.113.9', scheme);
  const certificate = settings.get('clientCertificate');
  if (certificate !== undefined) {
    client.clientCertificate = new ClientCertificate({
      subject: 'O=Example "Corp"\nCN=alice',
      sha256: 'ab12',
      names: { dns: ['alice.example.com'], uri: ['spiffe://example.com/ns/a/sa/b'], ip: [], email: [] },
      spiffeId: 'spiffe://example.com/ns/a/sa/b',
      verified: certificate === 'verified',
    } as unknown as PeerCertificate);
  }
  const endpoint = settings.get('endpoint') ?? '10.0.0.1:9001';
  return rewriteRequest(request, runtime, client, endpoint, settings.get('upgrade') === 'true');
}

const file = readFileSync(join(import.meta.dirname, 'request-head.md'), 'utf8');
for (const each of file.split(/^## /m).slice(1).map(parseCase)) {
  test(each.name, () => {
    const result = run(each);
    const generated = UUID.test(result.requestId);
    const shown = (text: string): string => (generated ? text.replace(result.requestId, '{id}') : text);
    assert.equal(shown(result.output), each.output);
    for (const [name, value] of each.positions) {
      assert.equal(shown(result[name as keyof RewrittenRequest]), value, name);
    }
  });
}
