// Warnings about sections that do not meet: backends that nobody uses, listeners without routes.
// Control thread.

import { isMapping, type Mapping } from './semantics-walk.ts';
import type { Judged, Warn } from './warnings.ts';

/** Reports backends without reference, listeners without route, and references that get nothing. */
export function warnOfReferences({ config, input }: Judged, warn: Warn): void {
  const used = new Set<string>();
  for (const [index, route] of (input.routes as readonly Mapping[]).entries()) {
    collectBackends(route.rules, used);
    for (const [rule, { backendRefs }] of (route.rules as Mapping[]).entries()) {
      for (const [ref, { name, weight }] of ((backendRefs as Mapping[] | undefined) ?? []).entries()) {
        if (weight !== 0) continue;
        const path = ['routes', index, 'rules', rule, 'backendRefs', ref, 'weight'];
        warn(
          'zero-weight',
          path,
          `backend ${JSON.stringify(name)} gets no request of this rule; remove the reference unless its weight is about to grow`,
        );
      }
    }
  }
  for (const [index, { name }] of config.backends.entries()) {
    if (used.has(name)) continue;
    warn(
      'unused-backend',
      ['backends', index],
      `no route refers to backend ${JSON.stringify(name)}; remove it, or add a backendRef`,
    );
  }
  for (const [index, listener] of config.listeners.entries()) {
    const { name } = listener;
    if (listener.redirectToHttps !== null) continue;
    const forConnections = listener.protocols[0] === 'tcp';
    const has = forConnections
      ? config.streamRoutes.some(({ listeners }) => listeners.includes(name))
      : config.routes.some(({ listeners }) => listeners === null || listeners.includes(name));
    if (has) continue;
    const what = forConnections ? 'every connection is closed' : 'every request gets 404';
    warn(
      'idle-listener',
      ['listeners', index],
      `no route belongs to listener ${JSON.stringify(name)}, so ${what}; add a route, or remove the listener`,
    );
  }
}

/** Names in every `backendRef` and `backendRefs` below a value: filters refer to backends too. */
function collectBackends(value: unknown, used: Set<string>): void {
  if (Array.isArray(value)) {
    for (const item of value) collectBackends(item, used);
    return;
  }
  if (!isMapping(value)) return;
  for (const [key, below] of Object.entries(value)) {
    const refs = key === 'backendRefs' && Array.isArray(below) ? below : key === 'backendRef' ? [below] : [];
    for (const ref of refs) if (isMapping(ref) && typeof ref.name === 'string') used.add(ref.name);
    collectBackends(below, used);
  }
}
