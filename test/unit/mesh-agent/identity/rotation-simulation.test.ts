// Rotations with simulated proxies: slow, gone and back, restarts of the control plane, a disk that refuses now and
// then, aborts. `SEED=n` repeats a run.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  abortRotation,
  initialState,
  proxyConfirmed,
  proxyConnected,
  proxyGone,
  signerId,
  startRotation,
  trustedIds,
} from '../../../../mesh-agent/identity/rotation.ts';
import { RotationKeeper } from '../../../../mesh-agent/identity/rotation-keeper.ts';
import { seeded, turns } from './support.ts';

interface SimulatedProxy {
  name: string;
  connected: boolean;
  /** Bundle in use. */
  trusted: string[];
  sequence: number;
  /** Root of its certificate; empty: it has none that is valid. */
  leaf: string;
  goneSinceMs: number;
}

/** As long as certificates live, so that whoever is gone for longer has none that is valid. */
const GONE_WAIT_MS = 50_000;

test('many proxies, some slow or gone, restarts and aborts: no two that are connected ever distrust each other', async () => {
  for (let run = 0; run < 12; run++) {
    const seed = Number(process.env.SEED ?? (Date.now() % 1_000_000) * 100 + run);
    const random = seeded(seed);
    const chance = (p: number): boolean => random() < p;
    let nowMs = 1_000_000;
    let stored = initialState('td', 'root-0', nowMs);
    let published = { trusted: trustedIds(stored), sequence: stored.sequence, signer: signerId(stored) };
    let saves = 0;
    const open = (): RotationKeeper =>
      new RotationKeeper(stored, {
        store: {
          load: async () => stored,
          save: async (state) => {
            await turns(Math.floor(random() * 2));
            if (chance(0.05)) throw new Error('disk');
            saves++;
            stored = JSON.parse(JSON.stringify(state));
          },
        },
        nowMs: () => nowMs,
        goneWaitMs: GONE_WAIT_MS,
        entered: async (state) => {
          published = { trusted: trustedIds(state), sequence: state.sequence, signer: signerId(state) };
        },
        failed: () => {},
      });
    let keeper = open();
    const proxies: SimulatedProxy[] = Array.from({ length: 12 }, (_, i) => ({
      name: `proxy-${i}`,
      connected: false,
      trusted: published.trusted,
      sequence: 0,
      leaf: '',
      goneSinceMs: 0,
    }));
    let rotations = 0;
    const seen = new Set<string>();
    const finished = (): boolean => rotations >= 3 && keeper.state.phase === 'idle';
    for (let step = 0; step < 6000 && !finished(); step++) {
      nowMs += 100;
      const proxy = proxies[Math.floor(random() * proxies.length)]!;
      // The first proxies are slow ones.
      const slow = proxies.indexOf(proxy) < 3 && chance(0.7);
      const action = random();
      if (!proxy.connected) {
        if (chance(0.5)) {
          proxy.connected = true;
          if (nowMs >= proxy.goneSinceMs + GONE_WAIT_MS) proxy.leaf = '';
          keeper.note((state) => proxyConnected(state, proxy.name));
        }
      } else if (action < 0.02) {
        proxy.connected = false;
        proxy.goneSinceMs = nowMs;
        keeper.note((state) => proxyGone(state, proxy.name, nowMs));
      } else if (!slow && action < 0.4) {
        proxy.trusted = published.trusted;
        proxy.sequence = published.sequence;
        keeper.note((state) =>
          proxyConfirmed(state, proxy.name, proxy.sequence, proxy.leaf === '' ? [] : [proxy.leaf]),
        );
      } else if (!slow && action < 0.8 && proxy.sequence === published.sequence) {
        proxy.leaf = published.signer;
        keeper.note((state) =>
          proxyConfirmed(state, proxy.name, proxy.sequence, proxy.leaf === '' ? [] : [proxy.leaf]),
        );
      }
      if (chance(0.01) && keeper.state.phase === 'idle') {
        const next = `root-${++rotations}-${step}`;
        await keeper.step((state) => startRotation(state, next, nowMs)).catch(() => rotations--);
      }
      if (chance(0.002)) await keeper.step((state) => abortRotation(state, nowMs)).catch(() => {});
      if (chance(0.003)) {
        // The process is killed between two saves; the proxies find it again.
        await keeper.settled();
        keeper = open();
        for (const other of proxies) {
          if (other.connected) other.goneSinceMs = nowMs;
          other.connected = false;
        }
        published = { trusted: trustedIds(stored), sequence: stored.sequence, signer: signerId(stored) };
      }
      if (chance(0.2)) await keeper.proceed().catch(() => {});
      await turns(1);
      seen.add(keeper.state.phase);
      // Whoever is connected trusts what every other connected one shows, and what is signed now.
      const live = proxies.filter(({ connected, sequence }) => connected && sequence > 0);
      for (const a of live) {
        const record = keeper.state.proxies[a.name];
        if (record === undefined || record.sequence === 0) continue;
        for (const b of live) {
          assert.ok(
            b.leaf === '' || a.trusted.includes(b.leaf),
            `seed ${seed}, step ${step}, ${keeper.state.phase}: ${a.name} trusts ${a.trusted}, ${b.name} shows ${b.leaf}`,
          );
        }
      }
    }
    await keeper.settled();
    assert.ok(saves > 0);
    assert.ok(finished(), `seed ${seed}: ${rotations} rotations, ${keeper.state.phase}`);
  }
});
