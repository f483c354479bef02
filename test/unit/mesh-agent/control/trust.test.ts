// Trust bundles between control plane and proxies, without a network: what is sent, what counts as confirmed.

import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Discovery } from '../../../../mesh-agent/control/discovery.ts';
import {
  AUTHORIZATION_TYPE,
  type DeltaRequest,
  type DeltaResponse,
  ISSUERS_METADATA,
  responseCodec,
  TRUST_TYPE,
  trustCodec,
} from '../../../../mesh-agent/control/protocol.ts';
import { ProxyState } from '../../../../mesh-agent/control/proxy-state.ts';
import { TrustReceiver } from '../../../../mesh-agent/control/proxy-trust.ts';
import { SavedFile } from '../../../../mesh-agent/control/saved-file.ts';
import { TrustFeed } from '../../../../mesh-agent/control/trust-feed.ts';
import type { MeshAuthority } from '../../../../mesh-agent/identity/authority.ts';
import { bundleFromJson, bundleToPem } from '../../../../mesh-agent/identity/trust-bundle.ts';
import { TrustStore } from '../../../../mesh-agent/identity/trust-store.ts';
import { openAuthority, TRUST_DOMAIN } from '../identity/support.ts';
import { logLines, noLog } from './support.ts';

const OLD = '00000000000000aa';
const NEW = '00000000000000bb';

/** A stream of a node's proxy that answers nothing by itself. */
class Peer {
  readonly responses: DeltaResponse[] = [];
  private readonly stream;
  private readonly discovery: Discovery;

  constructor(discovery: Discovery, node: string) {
    this.discovery = discovery;
    const send = (bytes: Buffer): void => void this.responses.push(responseCodec.decode(bytes));
    this.stream = discovery.connect({ name: `token of ${node}`, node }, { send, end: () => {} });
  }

  say(more: Partial<DeltaRequest> = {}, issuers?: string): void {
    const fields = issuers === undefined ? {} : { [ISSUERS_METADATA]: { stringValue: issuers } };
    this.stream.recvRequest({
      ...{ node: { id: 'claimed', metadata: { fields } }, typeUrl: TRUST_TYPE, responseNonce: '', errorDetail: null },
      ...{ resourceNamesSubscribe: [], resourceNamesUnsubscribe: [], initialResourceVersions: {} },
      ...more,
    });
  }

  /** The sequence of the only bundle that is waiting, and its nonce. */
  take(): { sequence: number; nonce: string } {
    assert.equal(this.responses.length, 1);
    const [{ nonce, resources, typeUrl }] = this.responses.splice(0) as [DeltaResponse];
    assert.equal(typeUrl, TRUST_TYPE);
    const [{ name, resource }] = resources as [DeltaResponse['resources'][number]];
    assert.equal(name, TRUST_DOMAIN);
    const json = Buffer.from(trustCodec.decode(resource!.value).json).toString();
    return { sequence: bundleFromJson(TRUST_DOMAIN, json).sequence, nonce };
  }

  confirm(issuers = OLD): void {
    this.say({ responseNonce: this.take().nonce }, issuers);
  }

  close(): void {
    this.discovery.disconnect(this.stream);
  }
}

async function setUp(t: TestContext): Promise<{ authority: MeshAuthority; discovery: Discovery; feed: TrustFeed }> {
  const authority = await openAuthority(t);
  const feed = new TrustFeed(authority);
  return { authority, feed, discovery: new Discovery(noLog, TRUST_DOMAIN, undefined, feed) };
}

const waiting = (authority: MeshAuthority): string[] => authority.rotationStatus().waiting.map(({ proxy }) => proxy);

test('a bundle is sent when it is asked for, and again only when it changes and the last one is answered', async (t) => {
  const { authority, discovery } = await setUp(t);
  const peer = new Peer(discovery, 'a');
  assert.equal(peer.responses.length, 0);
  peer.say();
  const first = peer.take();
  assert.equal(first.sequence, authority.bundle.sequence);
  await authority.startRotation();
  assert.equal(peer.responses.length, 0, 'one is under way');
  peer.say({ responseNonce: first.nonce }, OLD);
  assert.equal(peer.take().sequence, authority.bundle.sequence);
  // An answer to what has been overtaken counts for nothing.
  peer.say({ responseNonce: first.nonce }, OLD);
  await authority.settled();
  assert.deepEqual(waiting(authority), ['a']);
  // Requests for other types are not disturbed.
  peer.say({ typeUrl: AUTHORIZATION_TYPE, resourceNamesSubscribe: ['*'] });
  assert.deepEqual(
    peer.responses.splice(0).map(({ typeUrl }) => typeUrl),
    [AUTHORIZATION_TYPE],
  );
});

test('a node counts once: all of its streams have to confirm, and it is gone with the last of them', async (t) => {
  const { authority, discovery } = await setUp(t);
  const [before, after] = [new Peer(discovery, 'a'), new Peer(discovery, 'a')];
  for (const peer of [before, after]) {
    peer.say();
    peer.confirm();
  }
  await authority.startRotation();
  after.confirm();
  await authority.settled();
  assert.deepEqual([authority.rotationStatus().phase, waiting(authority)], ['distributing', ['a']]);
  before.close();
  await authority.settled();
  assert.equal(authority.rotationStatus().phase, 'renewing', 'the one that is left has confirmed');
  assert.equal(authority.rotationStatus().connected, 1);
  after.close();
  await authority.settled();
  assert.deepEqual([authority.rotationStatus().connected, waiting(authority)], [0, ['a']]);
});

test('the mesh moves on when certificates lead to the new root, and not on the word of another node', async (t) => {
  const { authority, discovery } = await setUp(t);
  const [a, b] = [new Peer(discovery, 'a'), new Peer(discovery, 'b')];
  for (const peer of [a, b]) {
    peer.say();
    peer.confirm();
  }
  await authority.startRotation();
  const { nextRoot } = authority.rotationStatus();
  a.confirm();
  b.confirm();
  await authority.settled();
  assert.equal(authority.rotationStatus().phase, 'renewing');
  const { activeRoot } = authority.rotationStatus();
  a.confirm(`${activeRoot},${nextRoot}`);
  b.confirm(nextRoot!);
  await authority.settled();
  assert.deepEqual(waiting(authority), ['a']);
  // Said without a response to answer, as certificates are renewed.
  a.say({}, nextRoot!);
  await authority.settled();
  assert.equal(authority.rotationStatus().phase, 'removing');
});

test('who refuses a bundle, or does not say what its certificates lead to, holds the rotation up', async (t) => {
  const { authority, discovery, feed } = await setUp(t);
  const [silent, refusing] = [new Peer(discovery, 'silent'), new Peer(discovery, 'refusing')];
  // A client of another kind, which does not even ask.
  new Peer(discovery, 'other');
  await authority.startRotation();
  silent.say();
  silent.say({ responseNonce: silent.take().nonce });
  refusing.say();
  const refusal = { code: 3, message: 'no room', details: [] };
  refusing.say({ responseNonce: refusing.take().nonce, errorDetail: refusal }, NEW);
  // Ids that are none say nothing.
  silent.say({}, 'not an id');
  await authority.settled();
  const reasons = authority.rotationStatus().waiting.map(({ proxy, reason }) => `${proxy}: ${reason}`);
  assert.deepEqual(reasons.length, 3);
  assert.match(reasons.join('\n'), /^silent: it has confirmed trust bundle 0/m);
  assert.match(reasons.join('\n'), /^other: it has confirmed trust bundle 0/m);
  assert.match(reasons.join('\n'), /^refusing: it refuses the trust bundle: no room/m);
  feed.close();
  silent.say({}, OLD);
  silent.close();
  await authority.settled();
  assert.equal(authority.rotationStatus().connected, 3, 'after the end nothing is noted any more');
});

test('a proxy keeps the bundle with its state, and only its own file is believed', async (t) => {
  const authority = await openAuthority(t);
  const roots = bundleToPem(authority.bundle);
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-trust-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const receiverOf = (store: TrustStore): TrustReceiver => {
    const trust = { store, rootsInUse: () => [], onRootsChange: () => () => {} };
    const receiver = new TrustReceiver({
      trust,
      trustDomain: TRUST_DOMAIN,
      log: noLog,
      say: () => {},
      taken: () => {},
    });
    t.after(() => receiver.close());
    return receiver;
  };
  const open = (): Promise<TrustStore> => TrustStore.open(TRUST_DOMAIN, roots, null, noLog);
  // Somebody who holds the rotation up.
  authority.proxyConnected('b');
  await authority.startRotation();
  const first = await open();
  const receiver = receiverOf(first);
  const { item } = new TrustFeed(authority).present();
  await receiver.load(responseCodec.decode(item).resources[0]!);
  assert.equal(first.current.roots.length, 2);

  const file = new SavedFile(join(directory, 'state'), noLog);
  file.write(() => new ProxyState(TRUST_DOMAIN).save({ subscriptions: [], absences: [] }, receiver.saved()));
  await file.close();
  const { log, lines } = logLines();
  const bytes = await new SavedFile(join(directory, 'state'), log).read();
  const second = await open();
  await receiverOf(second).load(new ProxyState(TRUST_DOMAIN).load(bytes!).trust!);
  assert.deepEqual(
    [second.current.sequence, second.current.roots.map(({ id }) => id)],
    [first.current.sequence, first.current.roots.map(({ id }) => id)],
  );
  chmodSync(join(directory, 'state'), 0o620);
  assert.equal(await new SavedFile(join(directory, 'state'), log).read(), undefined);
  assert.match(lines.join('\n'), /can be changed by others and is not used/);
});
