// The Kubernetes source against an API server over real connections: paging, resuming, and everything that breaks.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { configFor, Followed, follow, startApi } from '../../support/kube-api/harness.ts';
import { namespace, pod, service } from '../../support/kube-api/objects.ts';
import { Refusal } from '../../support/kube-api/status.ts';

test('lists in pages of one moment and then follows changes', async (t) => {
  const api = await startApi(t);
  for (let index = 0; index < 7; index++) api.store.put('pods', pod(`p${index}`, { ip: `10.0.0.${index + 1}` }));
  // Written between two pages: not on the later pages, and not missed either.
  api.onPage = (plural, page) => {
    if (plural === 'pods' && page === 1) api.store.put('pods', pod('p6-late', { ip: '10.0.1.1' }));
  };
  const followed = await follow(t, api, { pageSize: 3 });
  await followed.untilPod('p6-late');
  assert.equal(followed.state.workloads.size, 8);
  const pages = api.seen.filter(({ verb, plural }) => verb === 'list' && plural === 'pods');
  assert.equal(pages.length, 3);
  assert.deepEqual(
    pages.map(({ query }) => query.limit),
    ['3', '3', '3'],
  );
  const watch = api.seen.find(({ verb, plural }) => verb === 'watch' && plural === 'pods');
  assert.equal(watch!.query.allowWatchBookmarks, 'true');

  api.store.delete('pods', 'shop/p3');
  await followed.until('p3 gone', () => followed.pod('p3') === undefined);
  api.store.put('pods', pod('p1', { ip: '10.0.0.2', ready: false }));
  await followed.untilPod('p1', ({ status }) => status === 'unhealthy');
  assert.equal(api.count('list', 'pods'), 3, 'nothing is listed twice');
});

test('a page whose moment is forgotten starts the list over, and no object is lost or doubled', async (t) => {
  const api = await startApi(t);
  for (let index = 0; index < 6; index++) api.store.put('pods', pod(`p${index}`, { ip: `10.0.0.${index + 1}` }));
  api.onPage = (plural, page) => {
    if (plural !== 'pods' || page !== 1 || api.seen.at(-1)!.query.limit === undefined) return;
    // Every time a first page has been sent, the rest of that moment is forgotten.
    api.store.delete('pods', 'shop/p0');
    api.store.put('pods', pod('p9', { ip: '10.0.0.99' }));
    api.store.compact();
  };
  const followed = await follow(t, api, { pageSize: 4 });
  await followed.untilPod('p9');
  assert.deepEqual([...followed.state.workloads.values()].map(({ name }) => name).sort(), [
    'p1',
    'p2',
    'p3',
    'p4',
    'p5',
    'p9',
  ]);
  const last = api.seen.filter(({ verb, plural }) => verb === 'list' && plural === 'pods').at(-1);
  assert.equal(last!.query.limit, undefined, 'the last resort is a list in one piece');
  assert.equal(last!.query.continue, undefined);
});

test('a broken connection is resumed from the version that was reached', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  await api.until(() => api.watches('pods').length === 1);
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');
  const reached = String(api.store.revision);
  api.watches('pods')[0]!.destroy();
  api.store.put('pods', pod('three', { ip: '10.0.0.3' }));
  await followed.untilPod('three');
  assert.equal(api.count('list', 'pods'), 1);
  const watches = api.seen.filter(({ verb, plural }) => verb === 'watch' && plural === 'pods');
  assert.equal(watches[1]!.query.resourceVersion, reached);
});

test('a watch that breaks in the middle of a line loses no event', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  for (const cut of [1, 40, 100_000]) {
    await api.until(() => api.watches('pods').length === 1);
    api.watches('pods')[0]!.cutNextLine(cut);
    api.store.put('pods', pod(`cut-${cut}`, { ip: `10.0.2.${cut % 250}` }));
    await followed.untilPod(`cut-${cut}`);
  }
  assert.equal(api.count('list', 'pods'), 1);
});

test('bookmarks move the version on, so that old history is not needed', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  await api.until(() => api.watches('pods').length === 1);
  for (let index = 0; index < 5; index++)
    api.store.put('services', service(`s${index}`, { clusterIP: `10.96.0.${index + 1}` }));
  api.store.compact();
  api.bookmark('pods');
  const version = String(api.store.revision);
  const pods = () => followed.source.state.collections.find(({ resource }) => resource === 'pods')!;
  while (pods().resourceVersion !== version) await new Promise((resolve) => setImmediate(resolve));
  api.watches('pods')[0]!.destroy();
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');
  assert.equal(api.count('list', 'pods'), 1);
});

for (const expiredAs of ['status', 'event'] as const) {
  test(`a forgotten version (410 as ${expiredAs}) is listed anew, with what went away in between`, async (t) => {
    const api = await startApi(t);
    api.expiredAs = expiredAs;
    api.store.put('pods', pod('stays'));
    api.store.put('pods', pod('goes', { ip: '10.0.0.2' }));
    const followed = await follow(t, api, { backoff: { firstMs: 5, maxMs: 10_000 } });
    const pods = () => followed.source.state.collections.find(({ resource }) => resource === 'pods')!;
    await api.until(() => api.watches('pods').length === 1);
    await api.stop();
    while (pods().failures < 4) await new Promise((resolve) => setImmediate(resolve));
    api.store.delete('pods', 'shop/goes');
    api.store.put('pods', pod('comes', { ip: '10.0.0.3' }));
    api.store.compact();
    await api.listen();
    await followed.untilPod('comes');
    const forgot = followed.lines.find(
      ({ message, fields }) => message.includes('forgot') && fields.resource === 'pods',
    )!;
    assert.ok(Number(forgot.fields.inMs) <= 5, 'the server is there: what failed before holds nothing back');
    assert.equal(followed.pod('goes'), undefined);
    const update = followed.updates.at(-1)!;
    assert.ok(!update.changes.workloads.has('Kubernetes//Pod/shop/stays'), 'what is the same is no change');
    assert.equal(pods().lists, 2);
  });
}

test('the last state stays while the server is away, and one line says so', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  await api.until(() => api.watches('pods').length === 1);
  await api.stop();
  await followed.until('failures', () => followed.lines.filter(({ level }) => level === 'warn').length >= 6);
  const collection = () => followed.source.state.collections.find(({ resource }) => resource === 'pods')!;
  while (collection().failures < 4) await new Promise((resolve) => setImmediate(resolve));
  assert.ok(followed.pod('one'));
  assert.equal(collection().synced, true);
  assert.match(collection().lastError, /ECONNREFUSED/);
  const refused = followed.lines.filter(
    ({ fields }) => fields.resource === 'pods' && /REFUSED/.test(String(fields.error)),
  );
  assert.equal(refused.length, 1);
  await api.listen();
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');
  await followed.until('recovery', () => followed.lines.some(({ message }) => message === 'kubernetes answers again'));
  assert.equal(api.count('list', 'pods'), 1);
});

test('a source knows how long it may have missed what is new, and when it has caught up', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const clock = { nowMs: 1_000_000 };
  const followed = new Followed(async () => configFor(api), { now: () => clock.nowMs });
  t.after(() => followed.source.close());
  assert.equal(followed.source.behindMs, Number.POSITIVE_INFINITY);
  await followed.start();
  assert.equal(followed.source.behindMs, 0, 'it has just been listed');
  const watching = async (): Promise<void> => {
    const isOne = (plural: string): boolean => api.watches(plural).length === 1;
    await api.until(() => ['pods', 'services', 'endpointslices'].every(isOne));
    const { source } = followed;
    while (!source.state.collections.every(({ phase }) => phase === 'watching')) await new Promise(setImmediate);
  };
  await watching();
  // Silence is no sign of anything, but a watch that has just begun may have much to tell.
  clock.nowMs += 4000;
  assert.equal(followed.source.behindMs, 4000);
  clock.nowMs += 1000;
  assert.equal(followed.source.behindMs, 0);
  clock.nowMs += 60_000;
  assert.equal(followed.source.behindMs, 0);

  await api.stop();
  const isAway = (): boolean => followed.source.state.collections.every(({ lastError }) => lastError !== '');
  await followed.until('the server is away', isAway);
  clock.nowMs += 30_000;
  assert.equal(followed.source.behindMs, 30_000, 'counted from the break');
  await api.listen();
  await watching();
  assert.equal(followed.source.behindMs, 30_000);
  clock.nowMs += 5000;
  assert.equal(followed.source.behindMs, 0);
  // One collection of those that make addresses is enough; the others make none.
  api.refuse('watch', 'serviceaccounts', new Refusal(403, 'Forbidden', 'no'), 1_000_000);
  api.watches('serviceaccounts')[0]!.destroy();
  const broken = (plural: string) => (): boolean =>
    followed.source.state.collections.find(({ resource }) => resource === plural)!.lastError !== '';
  await followed.until('refused', broken('serviceaccounts'));
  clock.nowMs += 20_000;
  assert.equal(followed.source.behindMs, 0);
  api.refuse('watch', 'services', new Refusal(403, 'Forbidden', 'no'), 1_000_000);
  api.watches('services')[0]!.destroy();
  await followed.until('refused', broken('services'));
  clock.nowMs += 20_000;
  assert.equal(followed.source.behindMs, 20_000);
});

test('lines in pieces, compressed answers and names of every script arrive whole', async (t) => {
  const api = await startApi(t);
  api.pieceBytes = 3;
  api.gzipBytesMin = 0;
  api.gzipWatches = true;
  api.store.put('pods', pod('one', { labels: { team: 'x' } }));
  const followed = await follow(t, api);
  const labels = { note: 'жук-\u{1F980}-蟹' };
  api.store.put('pods', pod('two', { ip: '10.0.0.2', labels }));
  await followed.untilPod('two');
  assert.deepEqual(followed.pod('two')!.labels, labels);
  assert.ok(api.seen.every(({ gzip }) => gzip));
});

test('garbage in a watch is not passed over: it is asked for again, then listed anew', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  for (let round = 1; round <= 3; round++) {
    await api.until(() => api.watches('pods').length === 1);
    api.watches('pods')[0]!.raw('{"type":"MODIFIED","object":{"metadata"\n');
    await api.until(() => api.watches('pods').length === 0);
  }
  await api.until(() => api.count('list', 'pods') === 2);
  assert.ok(followed.lines.some(({ level, fields }) => level === 'error' && fields.cause === 'malformed'));
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');
});

test('an error in the stream that is no 410 is survived without listing anew', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  await api.until(() => api.watches('pods').length === 1);
  api.watches('pods')[0]!.error(new Refusal(500, 'InternalError', 'etcd leader changed'));
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');
  assert.equal(api.count('list', 'pods'), 1);
});

test('refusals of every kind are named, waited out and survived', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  api.refuse('list', 'pods', new Refusal(403, 'Forbidden', 'pods is forbidden'));
  api.refuse('list', 'pods', { status: 502, text: '<html>bad gateway</html>' });
  api.refuse('list', 'pods', 'reset');
  api.refuse('list', 'pods', new Refusal(429, 'TooManyRequests', 'slow down', { details: { retryAfterSeconds: 0 } }));
  api.refuse('watch', 'pods', new Refusal(500, 'InternalError', 'boom'));
  const followed = await follow(t, api);
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  await followed.untilPod('two');
  const causes = followed.lines.filter(({ fields }) => fields.resource === 'pods').map(({ fields }) => fields.cause);
  assert.deepEqual(
    causes.filter((cause) => cause !== undefined),
    ['forbidden', 'overloaded', 'unreachable', 'overloaded', 'refused'],
  );
  const forbidden = followed.lines.find(({ fields }) => fields.cause === 'forbidden')!;
  assert.match(String(forbidden.fields.hint), /list and watch on pods/);
});

test('how long the server asks to be left alone is respected', async (t) => {
  const api = await startApi(t);
  api.refuse('list', 'pods', new Refusal(429, 'TooManyRequests', 'slow down', { details: { retryAfterSeconds: 1 } }));
  const followed = await follow(t, api);
  const line = followed.lines.find(({ fields }) => fields.cause === 'overloaded')!;
  assert.ok(Number(line.fields.retryInMs) >= 1000);
});

test('a slow watch delivers in order and late', async (t) => {
  const api = await startApi(t);
  api.store.put('pods', pod('one'));
  const followed = await follow(t, api);
  await api.until(() => api.watches('pods').length === 1);
  const watch = api.watches('pods')[0]!;
  watch.hold();
  for (let round = 0; round < 50; round++) {
    api.store.put('pods', pod('one', { ready: round % 2 === 1, labels: { round: String(round) } }));
  }
  api.store.put('pods', pod('two', { ip: '10.0.0.2' }));
  api.store.delete('pods', 'shop/two');
  api.store.put('pods', pod('three', { ip: '10.0.0.3' }));
  watch.release();
  await followed.untilPod('three');
  assert.equal(followed.pod('one')!.labels.round, '49');
  assert.equal(followed.pod('two'), undefined);
});

test('many changes in a row become few states', async (t) => {
  const api = await startApi(t);
  const followed = await follow(t, api);
  await api.until(() => api.watches('pods').length === 1);
  const before = followed.updates.length;
  const startMs = performance.now();
  for (let index = 0; index < 1000; index++) {
    api.store.put('pods', pod(`p${index}`, { ip: `10.1.${index >> 8}.${index & 255}` }));
    // Each by itself on the wire.
    await new Promise((resolve) => setImmediate(resolve));
  }
  await followed.until('all pods', () => followed.state.workloads.size === 1000);
  // However slow the machine: one state per interval of 100 ms, and the first and the last.
  const most = (performance.now() - startMs) / 100 + 2;
  assert.ok(followed.updates.length - before <= most, `${followed.updates.length - before} states, at most ${most}`);
});

test('nothing is told before every collection is complete', async (t) => {
  const api = await startApi(t);
  api.store.put('namespaces', namespace('shop', 'enabled'));
  api.store.put('pods', pod('one'));
  api.refuse('list', 'namespaces', new Refusal(503, 'ServiceUnavailable', 'starting'), 3);
  const followed = await follow(t, api);
  assert.equal(followed.updates.length, 1);
  assert.equal(followed.pod('one')!.protocol, 'hbone', 'never seen without its namespace');
});

test('an empty cluster is a state too', async (t) => {
  const followed = await follow(t, await startApi(t));
  assert.equal(followed.updates.length, 1);
  assert.equal(followed.state.workloads.size, 0);
});

test('a source without usable credentials says so at once', async () => {
  const followed = new Followed(
    (await import('../../../mesh-agent/kubernetes/api-client.ts')).kubeConfigLoader({
      file: '/nonexistent/kubeconfig',
    }),
  );
  await assert.rejects(followed.start(), { code: 'no-credentials', message: /\/nonexistent\/kubeconfig/ });
  await followed.source.close();
});

test('closing in the middle of a list ends the start, and every connection', async (t) => {
  const api = await startApi(t);
  api.refuse('list', 'pods', new Refusal(503, 'ServiceUnavailable', 'starting'), 1_000_000);
  const followed = new Followed(async () => configFor(api));
  const started = followed.start();
  await api.until(() => api.count('list', 'pods') >= 3);
  await followed.source.close();
  await assert.rejects(started, { code: 'unreachable' });
  await api.until(() => api.watches().length === 0);
  assert.equal(followed.updates.length, 0);
});
