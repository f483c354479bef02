// The conditions of a rule (`when`): those that a connection answers, and those that need its requests.
// Compiled once per snapshot, asked once per connection.
// Spec: Istio AuthorizationPolicy Conditions.

import { type ConnectionFacts, holds, identityList, networkList, textList } from './connection-facts.ts';
import { RequestCondition } from './request-condition.ts';
import type { PolicyConditionSettings } from './settings.ts';

/** Whether a condition holds for a connection. */
export type ConnectionCondition = (facts: ConnectionFacts, lenient: boolean) => boolean;

/** A condition that nobody can evaluate: rules that deny go by the rest of them, rules that allow never match. */
const unknown: ConnectionCondition = (_facts, lenient) => lenient;

/** Reads a condition. */
export function conditionOf(settings: PolicyConditionSettings): ConnectionCondition | RequestCondition {
  const { key, values, notValues } = settings;
  if (values.length === 0 && notValues.length === 0) return unknown;
  const [, field] = /^request\.headers\[([^\]:]+)\]$/.exec(key) ?? [];
  if (field !== undefined) return new RequestCondition(field, settings);
  switch (key) {
    case 'remote.ip':
      return new RequestCondition('', settings);
    case 'source.ip': {
      const lists = [networkList(values), networkList(notValues)] as const;
      return (facts, lenient) => holds(...lists, (list, some) => list.has(facts.source.peer, some), lenient);
    }
    case 'destination.ip': {
      const lists = [networkList(values), networkList(notValues)] as const;
      return (facts, lenient) => holds(...lists, (list, some) => list.has(facts.source.destination, some), lenient);
    }
    case 'destination.port': {
      const lists = [portList(values), portList(notValues)] as const;
      return (facts, lenient) => holds(...lists, (list, some) => list.has(facts, some), lenient);
    }
    case 'source.namespace': {
      const lists = [textList(values), textList(notValues)] as const;
      return (facts, lenient) => holds(...lists, (list, some) => facts.namespaceIn(list, some), lenient);
    }
    case 'source.principal': {
      const lists = [identityList(values), identityList(notValues)] as const;
      return (facts, lenient) => holds(...lists, (list, some) => facts.identityIn(list, some), lenient);
    }
    case 'connection.sni': {
      const lists = [textList(values, true), textList(notValues, true)] as const;
      return (facts, lenient) => holds(...lists, (list, some) => facts.serverNameIn(list, some), lenient);
    }
    default:
      return unknown;
  }
}

interface PortList {
  has(facts: ConnectionFacts, lenient: boolean): boolean;
}

function portList(values: readonly string[]): PortList | null {
  if (values.length === 0) return null;
  const ports = values.map(Number);
  const isUnknown = ports.some((port) => !Number.isInteger(port));
  return { has: (facts, lenient) => (isUnknown && lenient) || facts.portIn(ports, lenient) };
}
