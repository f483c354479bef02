// What a node asks the control plane for, and when it gives that up, with a control plane that answers as the test says.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DestinationAnswer, UsedDestinations } from '../../../../core/workers/protocol.ts';
import type { Lookup } from '../../../../mesh-agent/control/xds-client.ts';
import type { AddressOwner } from '../../../../mesh-agent/model/mesh-index.ts';
import {
  AWAY_MS,
  Demand,
  KNOWN_MAX,
  MEMBERS_PER_WORKLOAD_MAX,
  MEMBERS_ROOM,
  OUTSIDE_PER_WORKLOAD_MAX,
  OUTSIDE_SLACK,
  QUESTIONS_BURST,
  QUESTIONS_PER_SECOND,
} from '../../../../mesh-agent/node/demand.ts';
import { service, workload } from '../control/support.ts';

const IDLE_MS = 60_000;

/** A node whose clock and whose control plane stand still unless told otherwise. */
class Node {
  nowMs = 0;
  /** Asked and not answered yet. */
  readonly asked = new Map<string, (result: Lookup) => void>();
  /** What there is in the mesh, by address. */
  readonly owners = new Map<string, AddressOwner>();
  readonly absent = new Set<string>();
  readonly told: string[] = [];
  readonly released: string[] = [];
  /** What workers say is used. */
  used: UsedDestinations = { hosts: [], all: false };
  /** They never say it. */
  silent = false;
  awayMs = 0;
  rounds = 0;
  saves = 0;
  /** Everything that was ever asked. */
  questions = 0;
  readonly demand: Demand;

  /** `names` are known from an earlier process, those in `absent` to be nothing's. */
  constructor(names: string[] = [], absent: readonly string[] = [], idleTimeoutMs = IDLE_MS) {
    const node = this;
    for (const name of absent) this.absent.add(name);
    this.demand = new Demand({
      directory: {
        names,
        get awayMs() {
          return node.awayMs;
        },
        index: { byAddress: (host) => this.owners.get(host) },
        known: (name) => this.known(name),
        lookup: (name) => {
          this.questions++;
          assert.ok(!this.asked.has(name), `${name} is asked for twice`);
          return new Promise((resolve) => this.asked.set(name, resolve));
        },
        release: (...gone) => void this.released.push(...gone),
        save: () => void this.saves++,
      },
      answer: (answers: readonly DestinationAnswer[]) =>
        void this.told.push(
          ...answers.map(
            (answer) => `${answer.host} ${answer.verdict}${'workload' in answer ? ` ${answer.workload}` : ''}`,
          ),
        ),
      found: () => void this.rounds++,
      used: async () => (this.silent ? new Promise<UsedDestinations>(() => {}) : this.used),
      isOwn: (host) => host === '10.2.0.1',
      idleTimeoutMs,
      now: () => this.nowMs,
    });
    this.demand.start();
  }

  private known(name: string): Extract<Lookup, { status: 'found' | 'absent' }> | null {
    const owner = this.owners.get(name.slice(1));
    if (owner !== undefined) return { status: 'found', owner };
    return this.absent.has(name) ? { status: 'absent' } : null;
  }

  /** A worker does not know an address. */
  ask(host: string, from = 'web'): void {
    this.demand.receive([{ host, workload: from }]);
  }

  /** The control plane answers what it has been asked: what there is, or that there is nothing. */
  async answer(...names: string[]): Promise<void> {
    for (const name of names.length > 0 ? names : [...this.asked.keys()]) {
      const resolve = this.asked.get(name)!;
      this.asked.delete(name);
      if (!this.owners.has(name.slice(1))) this.absent.add(name);
      resolve(this.known(name)!);
    }
    await new Promise(setImmediate);
    await new Promise(setImmediate);
  }

  /** What workers have been told since this was last looked at. */
  takeTold(): string[] {
    return this.told.splice(0);
  }

  end(): void {
    this.demand.close();
  }
}

const cart: AddressOwner = { kind: 'service', service: service('cart', { vips: ['10.9.0.1', 'fd00::1'] }) };

test('an address is asked for once; what is found comes in a round, and workers are told what is outside', async () => {
  const node = new Node();
  node.owners.set('10.9.0.1', cart);
  for (const from of ['web', 'web', 'feed']) {
    node.ask('10.9.0.1', from);
    node.ask('192.0.2.1', from);
  }
  assert.deepEqual([...node.asked.keys()], ['/10.9.0.1', '/192.0.2.1']);
  assert.deepEqual([node.rounds, node.takeTold()], [0, []]);
  await node.answer();
  assert.deepEqual([node.rounds, node.takeTold()], [1, ['192.0.2.1 outside']]);
  // Another worker, or one that is new, gets the same answer.
  node.ask('192.0.2.1');
  await node.answer();
  assert.deepEqual([node.questions, node.takeTold()], [2, ['192.0.2.1 outside']]);
  assert.deepEqual(node.demand.state, { addresses: 2, outside: 1, asking: 0, queued: 0 });
  node.end();
  assert.equal(node.saves, 1, 'what is outside is on disk at the end');
});

test('without an answer workers are told why, and the next connection asks again', async () => {
  const node = new Node();
  for (const host of ['10.9.0.1', '10.9.0.2', '10.9.0.3']) node.ask(host);
  const [late, away, unusable] = [...node.asked.values()];
  late!({ status: 'deadline', connected: true });
  away!({ status: 'deadline', connected: false });
  unusable!({ status: 'unusable' });
  node.asked.clear();
  await node.answer();
  assert.deepEqual(node.takeTold(), ['10.9.0.1 unanswered', '10.9.0.2 away', '10.9.0.3 unanswered']);
  assert.deepEqual(node.released, ['/10.9.0.1', '/10.9.0.2', '/10.9.0.3']);
  assert.equal(node.demand.state.addresses, 0);
  node.ask('10.9.0.1');
  assert.deepEqual([...node.asked.keys()], ['/10.9.0.1']);
  node.end();
});

test('a control plane that has been away for some time is not waited for, but what is known is known', async () => {
  const node = new Node();
  node.ask('192.0.2.1');
  await node.answer();
  node.takeTold();
  node.awayMs = AWAY_MS + 1;
  node.ask('192.0.2.1');
  node.ask('10.9.0.1');
  await node.answer();
  assert.deepEqual(node.takeTold(), ['192.0.2.1 outside', '10.9.0.1 away']);
  assert.equal(node.asked.size, 0);
  node.end();
});

test('an answer that cannot be used is no reason to take an address to be outside', async () => {
  const node = new Node();
  node.ask('192.0.2.1');
  await node.answer();
  node.takeTold();
  // Something has come to be there, and its resource was refused.
  node.absent.delete('/192.0.2.1');
  node.ask('192.0.2.1');
  await node.answer();
  assert.deepEqual(node.takeTold(), ['192.0.2.1 unanswered']);
  node.end();
});

test('what is too old to be believed to be outside is not, and is asked for again', async () => {
  const node = new Node(['/192.0.2.1', '/192.0.2.2']);
  for (const name of ['/192.0.2.1', '/192.0.2.2']) node.absent.add(name);
  node.ask('192.0.2.1');
  node.awayMs = AWAY_MS + 1;
  await node.answer();
  assert.deepEqual(node.takeTold(), ['192.0.2.1 outside']);
  node.absent.delete('/192.0.2.1');
  node.demand.forget(['/192.0.2.1', '/192.0.2.3']);
  assert.deepEqual([node.takeTold(), node.released], [['192.0.2.1 forgotten'], ['/192.0.2.1']]);
  for (const host of ['192.0.2.1', '192.0.2.2']) node.ask(host);
  await node.answer();
  assert.deepEqual(node.takeTold(), ['192.0.2.1 away', '192.0.2.2 outside']);
  node.awayMs = 0;
  node.ask('192.0.2.1');
  assert.deepEqual([...node.asked.keys()], ['/192.0.2.1']);
  node.end();
});

test('what could not be used when it came to be is not outside any more', async () => {
  const node = new Node();
  node.ask('192.0.2.1');
  await node.answer();
  node.takeTold();
  node.absent.delete('/192.0.2.1');
  node.demand.doubt(['/192.0.2.1', '/192.0.2.2']);
  await node.answer();
  assert.deepEqual(node.takeTold(), ['192.0.2.1 forgotten']);
  assert.equal(node.demand.state.outside, 0);
  node.ask('192.0.2.1');
  await node.answer();
  assert.deepEqual(node.takeTold(), ['192.0.2.1 unanswered']);
  node.end();
});

test('a workload that asks too much does not end what another waits for', async () => {
  const node = new Node();
  // One question more than may be under way.
  for (let count = 0; count <= 64; count++) node.ask(`10.9.0.${count}`, 'web');
  for (let count = 0; count < 3000; count++) node.ask(`10.8.${count >> 8}.${count & 255}`, 'scanner');
  node.ask('10.9.0.64', 'scanner');
  await new Promise(setImmediate);
  assert.deepEqual(node.takeTold(), []);
  assert.ok(node.demand.state.queued <= 1025, `${node.demand.state.queued} queued`);
  node.end();
});

test('what is given up leaves the snapshots of workers, since nobody tells of its changes any more', async () => {
  const node = new Node();
  node.owners.set('10.9.0.1', cart);
  node.ask('10.9.0.1');
  node.ask('192.0.2.1');
  await node.answer();
  assert.equal(node.rounds, 1);
  node.nowMs = IDLE_MS + 1;
  await node.demand.look();
  assert.deepEqual([node.released, node.rounds], [['/10.9.0.1', '/192.0.2.1'], 2]);
  node.end();
});

test('what is not used is given up after its time, and workers hear of it first', async () => {
  const node = new Node();
  node.owners.set('10.9.0.1', cart);
  node.owners.set('10.9.0.2', { kind: 'service', service: service('feed', { vips: ['10.9.0.2'] }) });
  for (const host of ['10.9.0.1', '10.9.0.2', '192.0.2.1', '192.0.2.2']) node.ask(host);
  await node.answer();
  node.takeTold();
  for (let look = 0; look < 5; look++) {
    node.nowMs += IDLE_MS / 4;
    // By another of its addresses, and as it is.
    node.used = { hosts: ['fd00::1', '192.0.2.1'], all: false };
    node.owners.set('fd00::1', cart);
    await node.demand.look();
  }
  assert.deepEqual(node.released, ['/10.9.0.2', '/192.0.2.2']);
  assert.deepEqual(node.takeTold(), ['10.9.0.2 forgotten', '192.0.2.2 forgotten']);
  // Nobody knows what is used when a worker could not tell.
  node.nowMs += 2 * IDLE_MS;
  node.used = { hosts: [], all: true };
  await node.demand.look();
  assert.equal(node.released.length, 2);
  node.used = { hosts: [], all: false };
  // Nor can what is given up be had again without the control plane.
  node.awayMs = 1;
  await node.demand.look();
  assert.equal(node.released.length, 2);
  node.awayMs = 0;
  await node.demand.look();
  assert.deepEqual(node.released.slice(2), ['/10.9.0.1', '/192.0.2.1']);
  node.end();
});

test('a workload that is used by its own address is asked for, lest it goes with a service that is not used', async () => {
  const node = new Node();
  for (const [name, host] of [
    ['cart-0', '10.1.0.5'],
    ['own', '10.2.0.1'],
  ] as const) {
    node.owners.set(host, { kind: 'workload', workload: workload(name, { addresses: [host] }) });
  }
  node.used = { hosts: ['10.1.0.5', '10.2.0.1', '203.0.113.1'], all: false };
  await node.demand.look();
  assert.deepEqual([...node.asked.keys()], ['/10.1.0.5']);
  node.end();
});

test('what an earlier process has asked for is known, and given up like everything else', async () => {
  const node = new Node(['/10.9.0.1', '/192.0.2.1', 'shop/cart.shop.svc.cluster.local']);
  node.owners.set('10.9.0.1', cart);
  node.absent.add('/192.0.2.1');
  node.ask('192.0.2.1');
  await node.answer();
  assert.deepEqual([node.questions, node.takeTold()], [0, ['192.0.2.1 outside']]);
  node.nowMs = IDLE_MS + 1;
  await node.demand.look();
  assert.deepEqual(node.released, ['/10.9.0.1', '/192.0.2.1']);
  node.end();
});

test('a workload that tries 100,000 addresses has its share of questions and answers, and the others have theirs', async () => {
  const node = new Node();
  const seconds = 100;
  let others = 0;
  for (let second = 0; second < seconds; second++) {
    // Workers ask for what they know only once, whatever use they make of it.
    if (second === 0) node.ask('203.0.113.1', 'scanner');
    node.used = { hosts: ['203.0.113.1'], all: false };
    for (let count = 0; count < 1000; count++) node.ask(`10.${second}.${count >> 8}.${count & 255}`, 'scanner');
    const quiet = `192.0.2.${second}`;
    node.ask(quiet, 'web');
    if (node.asked.has(`/${quiet}`)) others++;
    assert.ok(node.asked.size <= 65, `${node.asked.size} under way`);
    // As often as the control plane answers, until the scanner's time of asking is used up.
    while (node.asked.size > 0) await node.answer();
    node.nowMs += 1000;
    assert.ok(node.demand.state.queued <= 1024, `${node.demand.state.queued} queued`);
  }
  assert.equal(others, seconds, 'nobody else has waited');
  const allowed = QUESTIONS_BURST + seconds * QUESTIONS_PER_SECOND;
  assert.ok(node.questions - others <= allowed, `${node.questions} questions`);
  assert.ok(node.questions - others >= allowed - QUESTIONS_PER_SECOND - 1, `${node.questions} questions`);
  const { addresses, outside } = node.demand.state;
  assert.equal(addresses, outside);
  const ofScanner = outside - others;
  assert.ok(
    ofScanner >= OUTSIDE_PER_WORKLOAD_MAX && ofScanner <= OUTSIDE_PER_WORKLOAD_MAX + OUTSIDE_SLACK,
    `${outside}`,
  );
  // What was given up, workers do not take to be outside any more; nothing of the others was.
  assert.equal(node.released.length, node.questions - others - ofScanner);
  const forgotten = new Set(node.told.filter((text) => text.endsWith(' forgotten')).map((text) => text.split(' ')[0]));
  assert.deepEqual(new Set(node.released.map((name) => name.slice(1))), forgotten);
  assert.ok(![...forgotten].some((host) => host!.startsWith('192.')));
  assert.ok(!forgotten.has('203.0.113.1'), 'nor what it goes on using itself');
  node.end();
});

test('what is outside is given up all the same when a worker never says what it uses', async () => {
  const node = new Node();
  node.silent = true;
  for (let second = 0; second < 80; second++) {
    for (let count = 0; count < 20; count++) node.ask(`10.${second}.0.${count}`, 'scanner');
    await node.answer();
    node.nowMs += 1000;
  }
  assert.ok(node.demand.state.outside <= OUTSIDE_PER_WORKLOAD_MAX + 2 * OUTSIDE_SLACK, `${node.demand.state.outside}`);
  node.end();
});

/** An address of the mesh, of 65,536. */
const member = (count: number): string => `10.7.${count >> 8}.${count & 255}`;

/** A workload has so many addresses of the mesh, and asks for no more than it may. */
async function useMembers(node: Node, count: number, from = 'scanner'): Promise<void> {
  for (let next = 0; next < count; next++) {
    const host = member(next);
    node.owners.set(host, { kind: 'workload', workload: workload(`of-${next}`, { addresses: [host] }) });
    node.ask(host, from);
    // Within what it may ask at once, and in turn.
    if (next % 16 !== 15 && next !== count - 1) continue;
    node.nowMs += 1000;
    node.demand.receive([]);
    await node.answer();
  }
  assert.equal(node.demand.state.addresses, count);
}

test('a workload has the node know so many addresses of the mesh: one that is too many takes the place of one unused', async () => {
  const node = new Node();
  await useMembers(node, MEMBERS_PER_WORKLOAD_MAX);
  assert.deepEqual([node.released, node.takeTold()], [[], []]);
  node.nowMs += 10_000;
  // The oldest is in use all the same.
  node.used = { hosts: [member(0)], all: false };
  node.owners.set('10.8.0.1', cart);
  node.ask('10.8.0.1', 'scanner');
  // Workers are asked first.
  await node.answer();
  await node.answer('/10.8.0.1');
  const gone = Array.from({ length: MEMBERS_ROOM }, (_, count) => `/${member(count + 1)}`);
  assert.deepEqual(node.released, gone);
  assert.deepEqual(
    node.takeTold(),
    gone.map((name) => `${name.slice(1)} forgotten`),
  );
  assert.equal(node.demand.state.addresses, MEMBERS_PER_WORKLOAD_MAX - MEMBERS_ROOM + 1);
  // What was given up is had again like everything else.
  node.ask(member(1), 'scanner');
  assert.deepEqual([...node.asked.keys()], [`/${member(1)}`]);
  node.end();
});

test('when all that a workload may have are in use, further ones are refused, and others have theirs', async () => {
  const node = new Node();
  await useMembers(node, MEMBERS_PER_WORKLOAD_MAX);
  node.nowMs += 10_000;
  const all = Array.from({ length: MEMBERS_PER_WORKLOAD_MAX }, (_, count) => member(count));
  node.used = { hosts: all, all: false };
  node.owners.set('10.8.0.1', cart);
  node.ask('10.8.0.1', 'scanner');
  node.ask('10.8.0.1', 'web');
  await node.answer();
  assert.deepEqual(node.takeTold(), [], 'another has the answer');
  for (const host of ['10.8.0.2', '10.8.0.3']) node.ask(host, 'scanner');
  assert.equal(node.asked.size, 0);
  await node.answer();
  assert.deepEqual(node.takeTold(), ['10.8.0.2 limit scanner', '10.8.0.3 limit scanner']);
  assert.deepEqual([node.released, node.demand.state.queued], [[], 0]);
  // Unknown use, or a control plane that is away, is no reason to give anything up.
  for (const [used, awayMs] of [
    [{ hosts: [], all: true }, 0],
    [{ hosts: [], all: false }, 1],
  ] as const) {
    Object.assign(node, { used: { hosts: [...used.hosts], all: used.all }, awayMs, nowMs: node.nowMs + 10_000 });
    node.ask('10.8.0.4', 'scanner');
    await node.answer();
    assert.deepEqual([node.takeTold(), node.released], [['10.8.0.4 limit scanner'], []]);
  }
  // What has not been used since makes room.
  Object.assign(node, { awayMs: 0, nowMs: node.nowMs + 10_000 });
  node.ask('10.8.0.4', 'scanner');
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.deepEqual([node.released.length, [...node.asked.keys()]], [MEMBERS_ROOM, ['/10.8.0.4']]);
  node.end();
});

test('what an earlier process knew is nobody’s, and takes no place of a workload', async () => {
  const names = Array.from({ length: MEMBERS_PER_WORKLOAD_MAX + 1 }, (_, count) => `/${member(count)}`);
  const node = new Node(names);
  node.ask('10.8.0.1', 'web');
  assert.deepEqual([...node.asked.keys()], ['/10.8.0.1']);
  // What is known because a service has it is not asked for besides when there is no place for it.
  node.owners.set('10.1.0.5', { kind: 'workload', workload: workload('cart-0', { addresses: ['10.1.0.5'] }) });
  node.used = { hosts: ['10.1.0.5'], all: false };
  await node.demand.look();
  assert.deepEqual([[...node.asked.keys()], node.demand.state.queued, node.takeTold()], [['/10.8.0.1'], 0, []]);
  node.end();
});

test('when there is no room in all, what an earlier process knew and nobody uses makes way, the oldest first', async () => {
  const names = Array.from(
    { length: KNOWN_MAX },
    (_, count) => `/10.${count >> 16}.${(count >> 8) & 255}.${count & 255}`,
  );
  // Nothing goes by itself.
  const node = new Node(names, [], 0);
  for (const name of names) node.owners.set(name.slice(1), cart);
  node.ask('10.8.0.1', 'web');
  await node.answer();
  assert.deepEqual([node.takeTold(), node.released], [['10.8.0.1 limit web'], []], 'all may be in use still');
  node.nowMs += 10_000;
  node.used = { hosts: ['10.0.0.0'], all: false };
  node.ask('10.8.0.1', 'web');
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.deepEqual([...node.asked.keys()], ['/10.8.0.1']);
  assert.deepEqual(node.released, names.slice(1, MEMBERS_ROOM + 1));
  node.end();
});

test('an address that an earlier process knew counts for the workload that asks for it, as far as that may have it', async () => {
  const names = Array.from({ length: MEMBERS_PER_WORKLOAD_MAX + 2 }, (_, count) => `/${member(count)}`);
  const node = new Node(names);
  for (const name of names) node.owners.set(name.slice(1), cart);
  // One is never asked for, and one more is asked for than counts.
  for (const name of names.slice(1)) node.ask(name.slice(1), 'web');
  assert.equal(node.questions, 0);
  node.nowMs += 10_000;
  node.ask('10.8.0.1', 'web');
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.deepEqual(node.released, names.slice(1, MEMBERS_ROOM + 1), 'of its own, which are all that it may have');
  assert.deepEqual([...node.asked.keys()], ['/10.8.0.1']);
  node.end();
});

test('what an earlier process knew to be outside counts for the workload that asks for it, as far as that may have it', async () => {
  const names = Array.from({ length: OUTSIDE_PER_WORKLOAD_MAX + 2 }, (_, count) => `/${member(count)}`);
  for (const left of [0, 1]) {
    const node = new Node(names, names);
    for (const name of names.slice(1)) node.ask(name.slice(1), 'web');
    for (let count = left; count <= OUTSIDE_SLACK; count++) node.ask(`192.0.2.${count}`, 'web');
    await node.answer();
    assert.equal(node.questions, OUTSIDE_SLACK + 1 - left);
    assert.deepEqual(node.released, left === 1 ? [] : names.slice(1, OUTSIDE_SLACK + 2));
    node.end();
  }
});
