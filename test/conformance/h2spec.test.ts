// Every case of h2spec, strict ones included, through a running gateway: over h2c and over TLS.
// Skipped, with the reason, where h2spec is not installed; .ci/run installs it where Go is present.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { startGateway, startUpstream, temporaryDirectory } from '../integration/support.ts';

/** Time that h2spec waits for a frame; its slowest cases wait for it several times. */
const WAIT_S = 3;

const program = (process.env.PATH ?? '')
  .split(delimiter)
  .map((folder) => join(folder, 'h2spec'))
  .find((path) => existsSync(path));
const skip = program === undefined ? 'h2spec is not installed' : false;

/** Runs all cases against a port; returns the report, and the line that sums it up. */
function runCases(port: string, tls: boolean): Promise<{ report: string; summary: string }> {
  const args = ['-S', '-h', '127.0.0.1', '-p', port, '-o', String(WAIT_S), ...(tls ? ['-t', '-k'] : [])];
  return new Promise((resolve, reject) => {
    const child = spawn(program!, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let report = '';
    child.stdout.on('data', (chunk) => (report += chunk));
    child.stderr.on('data', (chunk) => (report += chunk));
    child.on('error', reject);
    child.on('close', () => {
      resolve({ report, summary: /\d+ tests, .* failed/.exec(report)?.[0] ?? 'no summary' });
    });
  });
}

function makeCertificate(directory: string): void {
  execFileSync(
    'openssl',
    [
      ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'],
      ...['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'],
      ...['-keyout', join(directory, 'key.pem'), '-out', join(directory, 'cert.pem')],
    ],
    { stdio: 'ignore' },
  );
}

async function run(t: TestContext, tls: boolean): Promise<void> {
  const upstream = await startUpstream(t, (request, response) => {
    request.resume();
    request.on('end', () => response.end('an answer of some length'));
  });
  const directory = temporaryDirectory(t);
  if (tls) makeCertificate(directory);
  const certificates = `[{certificate: ${directory}/cert.pem, key: ${directory}/key.pem}]`;
  const gateway = startGateway(
    t,
    `workers: 1
admin: off
listeners: [{name: main, address: "127.0.0.1:0"${tls ? `, tls: {certificates: ${certificates}}` : ', protocols: [h2c]'}}]
routes: [{name: all, rules: [{backendRefs: [{name: one}]}]}]
backends: [{name: one, endpoints: ["127.0.0.1:${upstream}"]}]
`,
  );
  const { report, summary } = await runCases(String(await gateway.port('main')), tls);
  assert.match(summary, /^\d+ tests, \d+ passed, 0 skipped, 0 failed$/, report);
  assert.ok(Number.parseInt(summary, 10) >= 145, `only ${summary}`);
}

test('h2spec passes over h2c', { skip }, (t) => run(t, false));
test('h2spec passes over TLS', { skip }, (t) => run(t, true));
