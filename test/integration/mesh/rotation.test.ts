// A rotation of the root as operators and nodes meet it: the real control plane, the real commands, and nodes made of
// the real clients, over gRPC and TLS.

import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { credentials } from '@grpc/grpc-js';
import { systemClock } from '../../../core/process/clock.ts';
import { XdsClient } from '../../../mesh-agent/control/xds-client.ts';
import { CertificateClient } from '../../../mesh-agent/identity/certificate-client.ts';
import { splitCertificates } from '../../../mesh-agent/identity/pem.ts';
import { bundleToPem } from '../../../mesh-agent/identity/trust-bundle.ts';
import { TrustStore } from '../../../mesh-agent/identity/trust-store.ts';
import { WorkloadCertificates } from '../../../mesh-agent/identity/workload-certificates.ts';
import { temporaryDirectory } from '../../unit/mesh-agent/commands/support.ts';
import { runToEnd } from '../support.ts';
import { CONFIG, Control, createToken, workload } from './control-process.ts';

const DEADLINE_MS = 60_000;

/** Renewals are not spread over time. */
const clock = { ...systemClock, random: () => 0 };

/** What a node proxy does about trust: certificates of its node and of one workload, bundles, confirmations. */
class Node {
  readonly trust: TrustStore;
  readonly certificates: WorkloadCertificates;
  readonly xds: XdsClient;
  /** Set: the workers of this node take no bundle before it resolves. */
  hold: Promise<void> | null = null;
  private readonly identity: string;

  private constructor(
    t: TestContext,
    name: string,
    address: string,
    trust: TrustStore,
    token: string,
    stateFile: string | null,
  ) {
    this.trust = trust;
    this.identity = `spiffe://cluster.local/node/${name}`;
    const client = new CertificateClient({
      ...{ address, serverName: 'localhost', trust },
      token: async () => token,
      certificate: () => this.certificates.get(this.identity),
    });
    this.certificates = new WorkloadCertificates({ source: client, trust, log: () => {}, clock });
    this.xds = new XdsClient({
      ...{ address, serverName: 'localhost', id: `proxy-${name}`, node: name, trustDomain: 'cluster.local', stateFile },
      credentials: async () => {
        const { keyPem, chainPem } = await this.certificates.wait(this.identity, AbortSignal.timeout(DEADLINE_MS));
        return credentials.createSsl(
          Buffer.from(bundleToPem(trust.current)),
          Buffer.from(keyPem),
          Buffer.from(chainPem),
        );
      },
      onUpdate: () => {},
      log: () => {},
      reconnect: { firstMs: 20, maxMs: 100 },
      trust: {
        store: trust,
        use: async () => void (await this.hold),
        rootsInUse: () => this.certificates.rootsInUse(),
        onRootsChange: (listener) => this.certificates.onChange(listener),
      },
    });
    t.after(async () => {
      await this.xds.close();
      this.certificates.close();
      client.close();
    });
  }

  static async join(t: TestContext, control: Control, name: string, stateFile: string | null = null): Promise<Node> {
    const token = await createToken(control, '--node', name);
    const roots = await control.mesh('roots', '--admin', await control.admin());
    const trust = await TrustStore.open('cluster.local', roots, null, () => {});
    const node = new Node(t, name, await control.address(), trust, token, stateFile);
    node.certificates.hold(node.identity);
    await node.xds.start();
    await node.xds.synced();
    return node;
  }

  holdWorkload(): void {
    this.certificates.hold('spiffe://cluster.local/ns/shop/sa/cart');
  }
}

/** Phase, waiting nodes and roots, as the command says. */
async function rotation(t: TestContext, control: Control): Promise<{ text: string; roots: string[] }> {
  const { code, stdout, stderr } = await runToEnd(t, 'mesh', 'roots', '--admin', await control.admin());
  assert.equal(code, 0, stderr);
  return { text: stderr, roots: splitCertificates(stdout) };
}

/** Waits for a phase, and for nodes that hold it up; then says what the command says. */
async function phase(
  t: TestContext,
  control: Control,
  wanted: string,
  ...waiting: string[]
): Promise<{ text: string; roots: string[] }> {
  const endMs = performance.now() + DEADLINE_MS;
  for (;;) {
    const { ca } = JSON.parse((await control.get('/status')).body);
    const names = ca.waiting.map(({ proxy }: { proxy: string }) => proxy);
    if (ca.phase === wanted && names.join() === waiting.join()) return rotation(t, control);
    assert.ok(performance.now() < endMs, `never ${wanted}, waiting for ${waiting}: ${JSON.stringify(ca)}`);
  }
}

test('a rotation waits for the slowest node, survives a restart, and ends with the new root alone', async (t) => {
  const base = temporaryDirectory(t);
  const files = { 'cart.yaml': workload('cart', '10.1.0.5') };
  const first = new Control(t, files, CONFIG, base);
  const address = await first.address();
  const fast = await Node.join(t, first, 'host-a');
  fast.holdWorkload();
  const slow = await Node.join(t, first, 'host-b');
  const before = await phase(t, first, 'idle');
  assert.match(before.text, /^phase +idle: no rotation$/m);
  assert.equal(before.roots.length, 1);

  let release = (): void => {};
  slow.hold = new Promise((resolve) => {
    release = resolve;
  });
  assert.match(
    await first.mesh('rotate', '--config', first.file),
    /^the rotation from root [0-9a-f]{16} to root [0-9a-f]{16} has begun; `portcullis mesh roots`/,
  );
  const again = await runToEnd(t, 'mesh', 'rotate', '--config', first.file);
  assert.deepEqual(
    [again.code, /a rotation is under way \(distributing\); wait for its end/.test(again.stderr)],
    [1, true],
  );
  const held = await phase(t, first, 'distributing', 'host-b');
  assert.equal(held.roots.length, 2);
  assert.match(held.text, /^phase +distributing since 2/m);
  assert.match(held.text, /^waiting +host-b: it has confirmed trust bundle \d+, not \d+$/m);
  assert.match(await first.mesh('status', '--admin', await first.admin()), /^ +waits for host-b: it has confirmed/m);
  assert.equal(fast.trust.current.roots.length, 2);
  const oldRoot = before.text.match(/root +([0-9a-f]{16}).*signs/)![1]!;
  assert.deepEqual(fast.certificates.rootsInUse(), [oldRoot], 'nobody has a certificate of the new root yet');

  // A new process goes on where the old one was: it waits for the node that it knew.
  first.process.kill('SIGKILL');
  await first.process.finished;
  const second = new Control(t, files, CONFIG.replace('127.0.0.1:0', address), base);
  await second.address();
  const resumed = await phase(t, second, 'distributing', 'host-b');
  assert.deepEqual(resumed.roots.sort(), held.roots.sort());

  slow.hold = null;
  release();
  const after = await phase(t, second, 'idle');
  assert.equal(after.roots.length, 1);
  assert.notDeepEqual(after.roots, before.roots);
  const newRoot = after.text.match(/root +([0-9a-f]{16}).*signs/)![1]!;
  for (const node of [fast, slow]) {
    assert.deepEqual(node.certificates.rootsInUse(), [newRoot]);
    assert.deepEqual(
      node.trust.current.roots.map(({ id }) => id),
      [newRoot],
    );
  }
});

test('a node that will not come back is forgotten, a rotation is turned back, and wrong use is said', async (t) => {
  const base = temporaryDirectory(t);
  const control = new Control(t, {}, CONFIG, base);
  const gone = await Node.join(t, control, 'host-a', `${base}/state-a`);
  const stays = await Node.join(t, control, 'host-b');
  await gone.xds.close();
  await control.process.log(/info proxy disconnected proxy=proxy-host-a/);
  await control.mesh('rotate', '--config', control.file);
  assert.match((await phase(t, control, 'distributing', 'host-a')).text, /^waiting +host-a: .*; gone since 2/m);
  assert.match(
    await control.mesh('rotate', '--config', control.file, '--forget', 'host-a'),
    /host-a is not waited for/,
  );
  await phase(t, control, 'idle');
  assert.equal(stays.trust.current.roots.length, 1);
  const nobody = await runToEnd(t, 'mesh', 'rotate', '--config', control.file, '--forget', 'host-x');
  assert.deepEqual([nobody.code, nobody.stderr], [1, 'portcullis: no proxy of a node host-x is known.\n']);
  const early = await runToEnd(t, 'mesh', 'rotate', '--config', control.file, '--abort');
  assert.deepEqual([early.code, early.stderr], [1, 'portcullis: there is no rotation.\n']);

  let release = (): void => {};
  stays.hold = new Promise((resolve) => {
    release = resolve;
  });
  const { roots } = await rotation(t, control);
  await control.mesh('rotate', '--config', control.file);
  await phase(t, control, 'distributing', 'host-b');
  assert.match(await control.mesh('rotate', '--config', control.file, '--abort'), /^the rotation is turned back/);
  release();
  assert.deepEqual((await phase(t, control, 'idle')).roots, roots);

  control.process.kill('SIGTERM');
  await control.process.finished;
  const alone = await runToEnd(t, 'mesh', 'rotate', '--config', control.file);
  assert.equal(alone.code, 1);
  assert.match(alone.stderr, /^portcullis: no control plane uses \S+state\/ca: start it first/);
});
