// The API server that the other tests use, seen by clients that others wrote: kubectl, and the library's informer.
// And the source over TLS, with credentials in files.

import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { CoreV1Api, makeInformer, type V1Pod } from '@kubernetes/client-node';
import { kubeConfigLoader } from '../../../mesh-agent/kubernetes/api-client.ts';
import { configFor, Followed, startApi } from '../../support/kube-api/harness.ts';
import { pod, service } from '../../support/kube-api/objects.ts';
import type { KubeApi } from '../../support/kube-api/server.ts';
import { temporaryDirectory } from '../support.ts';

const noKubectl =
  spawnSync('kubectl', ['version', '--client'], { timeout: 10_000 }).status === 0 ? false : 'kubectl is not installed';

function kubectl(t: TestContext, api: KubeApi): (...args: string[]) => ReturnType<typeof spawn> {
  const home = temporaryDirectory(t);
  const file = join(home, 'config');
  writeFileSync(file, configFor(api).exportConfig());
  return (...args) =>
    spawn('kubectl', ['--kubeconfig', file, '--cache-dir', home, ...args], { env: { ...process.env, HOME: home } });
}

async function outputOf(child: ReturnType<typeof spawn>): Promise<string> {
  let output = '';
  child.stdout!.on('data', (chunk) => (output += chunk));
  child.stderr!.on('data', (chunk) => (output += chunk));
  const [code] = await once(child, 'close');
  assert.equal(code, 0, output);
  return output;
}

test('kubectl reads pages, selections and watches', { skip: noKubectl }, async (t) => {
  const api = await startApi(t);
  for (let index = 0; index < 5; index++) {
    api.store.put('pods', pod(`p${index}`, { ip: `10.0.0.${index + 1}`, labels: { odd: String(index % 2 === 1) } }));
  }
  const run = kubectl(t, api);
  const names = (...args: string[]): Promise<string> =>
    outputOf(run('get', 'pods', '-n', 'shop', '-o', 'name', ...args));
  assert.equal(await names('--chunk-size=2'), 'pod/p0\npod/p1\npod/p2\npod/p3\npod/p4\n');
  assert.equal(api.count('list', 'pods'), 3);
  assert.equal(await names('-l', 'odd=true'), 'pod/p1\npod/p3\n');
  assert.equal(await names('-l', 'odd notin (true)', '--field-selector', 'status.podIP!=10.0.0.1'), 'pod/p2\npod/p4\n');

  const watching = run('get', 'pods', '-n', 'shop', '-o', 'jsonpath={.metadata.name} {.status.podIP}\n', '--watch');
  t.after(() => watching.kill('SIGKILL'));
  let output = '';
  const lines = (pattern: RegExp): Promise<void> =>
    new Promise((resolve) => {
      const check = (): void => {
        if (pattern.test(output)) resolve();
      };
      watching.stdout!.on('data', check);
      check();
    });
  watching.stdout!.on('data', (chunk) => (output += chunk));
  await lines(/p4 10\.0\.0\.5/);
  await api.until(() => api.watches('pods').length === 1);
  api.store.put('pods', pod('late', { ip: '10.0.0.77' }));
  await lines(/late 10\.0\.0\.77/);
});

test('the library’s own informer follows it too', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const config = configFor(api);
  const core = config.makeApiClient(CoreV1Api);
  const informer = makeInformer<V1Pod>(config, '/api/v1/pods', () => core.listPodForAllNamespaces());
  t.after(() => informer.stop());
  const seen: string[] = [];
  const added = new Promise<void>((resolve) => {
    informer.on('add', ({ metadata }) => {
      seen.push(metadata!.name!);
      if (metadata!.name === 'two') resolve();
    });
  });
  await informer.start();
  await api.until(() => api.watches('pods').length === 1);
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await added;
  assert.deepEqual(seen, ['one', 'two']);
});

test('over TLS with a kubeconfig, an authority of its own and a token file that is replaced', async (t) => {
  const directory = temporaryDirectory(t);
  const file = (name: string): string => join(directory, name);
  const made = spawnSync(
    'openssl',
    `req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout ${file('key')} -out ${file('cert')}`.split(
      ' ',
    ),
  );
  assert.equal(made.status, 0, String(made.stderr));
  const api = await startApi(t, { key: readFileSync(file('key'), 'utf8'), cert: readFileSync(file('cert'), 'utf8') });
  api.access.required = true;
  api.access.tokens.set('first', { username: 'source' });
  api.store.put('pods', pod('one'));
  // As an editor leaves it.
  writeFileSync(file('token'), 'first\n');
  chmodSync(file('token'), 0o600);
  writeFileSync(
    file('config'),
    JSON.stringify({
      clusters: [{ name: 'c', cluster: { server: api.url, 'certificate-authority': file('cert') } }],
      // Beside the file, and before a token that is in it.
      users: [{ name: 'u', user: { tokenFile: 'token', token: 'older' } }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'elsewhere',
    }),
  );
  const followed = new Followed(kubeConfigLoader({ file: file('config'), context: 'x' }));
  t.after(() => followed.source.close());
  await followed.start();
  assert.ok(followed.pod('one'));

  // The token is replaced and the old one revoked: found out by a refusal, and read anew at once.
  await api.until(() => api.watches().length === 6);
  writeFileSync(file('token'), 'second');
  api.access.tokens.set('second', { username: 'source' });
  api.access.tokens.delete('first');
  for (const watch of api.watches()) watch.destroy();
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');

  const wrong = new Followed(async () => configFor(api, { token: 'second' }));
  t.after(() => wrong.source.close());
  const started = wrong.start();
  while (wrong.lines.length === 0) await new Promise((resolve) => setImmediate(resolve));
  assert.match(String(wrong.lines[0]!.fields.error), /self.signed certificate/);
  await wrong.source.close();
  await assert.rejects(started);

  await assert.rejects(kubeConfigLoader({ file: file('config'), context: 'nowhere' })(), { code: 'no-credentials' });
});

test('10,000 pods of 1,000 services are there in seconds, and cost little', { timeout: 200_000 }, async (t) => {
  const api = await startApi(t);
  for (let index = 0; index < 10_000; index++) {
    const labels = { app: `a${index % 1000}`, tier: 'x', version: `v${index % 3}` };
    const object = pod(`a${index % 1000}-${index}`, {
      namespace: `ns${index % 20}`,
      ip: `10.${index >> 14}.${(index >> 7) & 127}.${index & 127}`,
      node: `node${index % 100}`,
      labels,
    });
    // What a pod carries along and the mesh has no use for.
    object.metadata.managedFields = [{ manager: 'kubelet', fieldsV1: { note: 'x'.repeat(4000) } }];
    api.store.put('pods', object);
  }
  for (let index = 0; index < 1000; index++) {
    const clusterIP = `10.96.${index >> 8}.${index & 255}`;
    const selector = { app: `a${index}` };
    const namespace = `ns${index % 20}`;
    api.store.put('services', service(`a${index}`, { namespace, clusterIP, selector }));
  }
  const followed = new Followed(async () => configFor(api));
  t.after(() => followed.source.close());
  const startMs = performance.now();
  await followed.start();
  const listMs = performance.now() - startMs;
  assert.equal(followed.state.workloads.size, 10_000);
  assert.ok([...followed.state.workloads.values()].every(({ services }) => Object.keys(services).length === 1));
  const changeMs = performance.now();
  api.store.put('pods', pod('one-more', { ip: '10.200.0.1' }));
  await followed.untilPod('one-more');
  t.diagnostic(`listed in ${listMs.toFixed(0)} ms; one change after ${(performance.now() - changeMs).toFixed(0)} ms`);
  // No page is larger than asked for, and the first state is one.
  assert.equal(api.count('list', 'pods'), 20);
  assert.equal(followed.updates.length, 2);
});
