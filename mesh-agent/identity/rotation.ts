// Root rotation: the order of steps, and what each waits for. Pure; the authority carries it out.
//
//                        all have the        all leaves          all have the
//          start         new root            are renewed         smaller bundle
//   idle --------> distributing ------> renewing --------> removing --------> idle (new root)
//    ^                   | abort            | abort
//    |-------------------+                  v
//    +--------------------------------- reverting
//           all leaves are of the old root
//
//   phase          trusted      signs
//   idle           active       active
//   distributing   both         active
//   renewing       both         next
//   removing       next         next
//   reverting      both         active
//
// Every step gives the bundle a new sequence and moves on only when every proxy has confirmed it. A proxy that is
// gone counts as well, for as long as it may come back with what it had; then it is let go, and known as such.
// Invariant: no proxy is shown a certificate whose root it has not confirmed, nor keeps one whose root
// another has dropped.

import { isDeepStrictEqual } from 'node:util';
import { IdentityError } from './errors.ts';

/** Phases, see the diagram. */
export const ROTATION_PHASES = ['idle', 'distributing', 'renewing', 'removing', 'reverting'] as const;

/** One of them. */
export type RotationPhase = (typeof ROTATION_PHASES)[number];

/** What is known of a proxy. */
export interface ProxyRecord {
  /** Sequence of the bundle that it has confirmed; 0: none. */
  sequence: number;
  /** Roots that the certificates it uses lead to. */
  issuers: readonly string[];
  /** Since when it is not connected, in milliseconds since 1970; null: it is. */
  goneSinceMs: number | null;
  /** Why it does not take the present bundle; empty: it has not said. */
  refusal: string;
}

/** The state that outlives the process. Immutable. */
export interface RotationState {
  trustDomain: string;
  phase: RotationPhase;
  /** Of the present bundle. */
  sequence: number;
  /** Root that the mesh runs on, until the rotation has succeeded. */
  activeId: string;
  /** Root that the mesh moves to; null: no rotation. */
  nextId: string | null;
  phaseSinceMs: number;
  proxies: Readonly<Record<string, ProxyRecord>>;
}

/** A proxy that the rotation waits for. */
export interface Waiting {
  proxy: string;
  reason: string;
}

/** State of a mesh that was never rotated. */
export function initialState(trustDomain: string, activeId: string, nowMs: number): RotationState {
  const sequence = nextSequence(0, nowMs);
  return { trustDomain, phase: 'idle', sequence, activeId, nextId: null, phaseSinceMs: nowMs, proxies: {} };
}

/** Begins a rotation to another root. Throws an IdentityError `rotation` when one is under way. */
export function startRotation(state: RotationState, nextId: string, nowMs: number): RotationState {
  if (state.phase !== 'idle') {
    throw new IdentityError('rotation', `a rotation is under way (${state.phase})`, 'wait for its end, or abort it');
  }
  if (nextId === state.activeId) throw new IdentityError('rotation', `${nextId} is the root that the mesh runs on`);
  return enter({ ...state, nextId }, 'distributing', nowMs);
}

/** Turns a rotation back. Throws an IdentityError `rotation` when there is none, or it is too late. */
export function abortRotation(state: RotationState, nowMs: number): RotationState {
  switch (state.phase) {
    case 'distributing':
      // Nothing leads to the new root yet.
      return enter({ ...state, nextId: null }, 'idle', nowMs);
    case 'renewing':
      return enter(state, 'reverting', nowMs);
    case 'removing':
      throw new IdentityError(
        'rotation',
        'the old root is being removed: it is too late to turn back',
        'let it finish, then rotate again',
      );
    case 'reverting':
      throw new IdentityError('rotation', 'the rotation is being turned back already');
    default:
      throw new IdentityError('rotation', 'there is no rotation');
  }
}

/**
 * The next phase if nothing holds it up; the same state otherwise. `goneWaitMs`: how long a proxy that is gone is
 * waited for.
 */
export function advance(state: RotationState, nowMs: number, goneWaitMs: number): RotationState {
  if (state.phase === 'idle' || waitingFor(state, nowMs, goneWaitMs).length > 0) return state;
  switch (state.phase) {
    case 'distributing':
      return enter(state, 'renewing', nowMs);
    case 'renewing':
      return enter(state, 'removing', nowMs);
    case 'removing':
      return { ...state, phase: 'idle', activeId: state.nextId!, nextId: null, phaseSinceMs: nowMs };
    default:
      return enter({ ...state, nextId: null }, 'idle', nowMs);
  }
}

/** The proxies that hold the present phase up, and why. */
export function waitingFor(state: RotationState, nowMs: number, goneWaitMs: number): Waiting[] {
  const waiting: Waiting[] = [];
  if (state.phase === 'idle') return waiting;
  for (const [proxy, record] of Object.entries(state.proxies)) {
    const reason = reasonToWait(state, record);
    if (reason === '') continue;
    const { goneSinceMs } = record;
    if (goneSinceMs === null) waiting.push({ proxy, reason });
    else if (nowMs < goneSinceMs + goneWaitMs) {
      waiting.push({ proxy, reason: `${reason}; gone since ${new Date(goneSinceMs).toISOString()}` });
    }
  }
  return waiting;
}

/** Ids of the roots in the bundle. */
export function trustedIds({ phase, activeId, nextId }: RotationState): string[] {
  if (phase === 'idle') return [activeId];
  return phase === 'removing' ? [nextId!] : [activeId, nextId!];
}

/** Id of the root that signs. */
export function signerId({ phase, activeId, nextId }: RotationState): string {
  return phase === 'renewing' || phase === 'removing' ? nextId! : activeId;
}

/** A proxy has connected; what it has, it has yet to say. */
export function proxyConnected(state: RotationState, proxy: string): RotationState {
  const { sequence, issuers } = recordOf(state, proxy) ?? { sequence: 0, issuers: [] };
  return withProxy(state, proxy, { sequence, issuers, goneSinceMs: null, refusal: '' });
}

/** A proxy uses the bundle of a sequence, and certificates of these roots. Of an unknown proxy, nothing is changed. */
export function proxyConfirmed(
  state: RotationState,
  proxy: string,
  sequence: number,
  issuers: readonly string[],
): RotationState {
  const record = recordOf(state, proxy);
  if (record === undefined) return state;
  return withProxy(state, proxy, { ...record, sequence, issuers: [...issuers], refusal: '' });
}

/** A proxy does not take the bundle. */
export function proxyRefused(state: RotationState, proxy: string, reason: string): RotationState {
  const record = recordOf(state, proxy);
  return record === undefined ? state : withProxy(state, proxy, { ...record, refusal: reason });
}

/** A proxy has gone. Outside of a rotation it is forgotten after a while (`forgetGone`). */
export function proxyGone(state: RotationState, proxy: string, nowMs: number): RotationState {
  const record = recordOf(state, proxy);
  if (record === undefined || record.goneSinceMs !== null) return state;
  return withProxy(state, proxy, { ...record, goneSinceMs: nowMs });
}

/** An operator says that a proxy will not come back. */
export function forgetProxy(state: RotationState, proxy: string): RotationState {
  if (recordOf(state, proxy) === undefined) return state;
  const { [proxy]: _, ...proxies } = state.proxies;
  return { ...state, proxies };
}

/** Without proxies that have been gone for longer than they would be waited for. */
export function forgetGone(state: RotationState, nowMs: number, goneWaitMs: number): RotationState {
  const entries = Object.entries(state.proxies);
  const kept = entries.filter(([, { goneSinceMs }]) => goneSinceMs === null || nowMs < goneSinceMs + goneWaitMs);
  return kept.length === entries.length ? state : { ...state, proxies: Object.fromEntries(kept) };
}

/** The state after a restart: nobody is connected, and whoever was is expected back from now on. */
export function afterRestart(state: RotationState, nowMs: number): RotationState {
  const entries = Object.entries(state.proxies).map(
    ([proxy, record]) => [proxy, { ...record, goneSinceMs: record.goneSinceMs ?? nowMs }] as const,
  );
  return { ...state, proxies: Object.fromEntries(entries) };
}

function reasonToWait(state: RotationState, { sequence, issuers, refusal }: ProxyRecord): string {
  if (refusal !== '') return `it refuses the trust bundle: ${refusal}`;
  if (sequence < state.sequence) return `it has confirmed trust bundle ${sequence}, not ${state.sequence}`;
  if (state.phase === 'renewing' || state.phase === 'reverting') {
    const signer = signerId(state);
    const others = issuers.filter((id) => id !== signer);
    if (others.length > 0) return `it uses certificates of the root ${others.join(', ')}`;
  }
  return '';
}

function enter(state: RotationState, phase: RotationPhase, nowMs: number): RotationState {
  return { ...state, phase, sequence: nextSequence(state.sequence, nowMs), phaseSinceMs: nowMs };
}

/** Grows always, and by the clock, so that a CA which has lost its state is not taken for an old one. */
function nextSequence(sequence: number, nowMs: number): number {
  return Math.max(sequence + 1, Math.floor(nowMs / 1000));
}

/** Names of proxies come from elsewhere; `__proto__` is one like others. */
function recordOf(state: RotationState, proxy: string): ProxyRecord | undefined {
  return Object.hasOwn(state.proxies, proxy) ? state.proxies[proxy] : undefined;
}

function withProxy(state: RotationState, proxy: string, record: ProxyRecord): RotationState {
  const known = recordOf(state, proxy);
  // What is known already is not written again.
  if (known !== undefined && isDeepStrictEqual(known, record)) return state;
  return { ...state, proxies: { ...state.proxies, [proxy]: record } };
}
