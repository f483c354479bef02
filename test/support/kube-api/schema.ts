// Checks objects against the types that @kubernetes/client-node generates from the API's own description: unknown
// fields, wrong types and missing required fields, as `kubectl apply --validate=strict` would find them.
//
// What is required is only in the library's type declarations, so those are read.

import { readFileSync } from 'node:fs';
import * as client from '@kubernetes/client-node';

interface Attribute {
  name: string;
  baseName: string;
  type: string;
}

interface Model {
  getAttributeTypeMap(): Attribute[];
}

const models = client as unknown as Record<string, Model | undefined>;
const requiredOf = new Map<string, Set<string>>();

/** What is wrong with an object, each with its path; empty: nothing. */
export function problemsOf(object: { apiVersion?: string; kind?: string }): string[] {
  const [version = '', group] = (object.apiVersion ?? '').split('/').reverse();
  const name = `${version.charAt(0).toUpperCase()}${version.slice(1)}${object.kind}`;
  const groups: Record<string, RegExp> = {
    Deployment: /^apps$/,
    DaemonSet: /^apps$/,
    ClusterRole: /^rbac\.authorization\.k8s\.io$/,
    ClusterRoleBinding: /^rbac\.authorization\.k8s\.io$/,
    PodDisruptionBudget: /^policy$/,
    NetworkPolicy: /^networking\.k8s\.io$/,
  };
  const expected = groups[object.kind ?? ''] ?? /^$/;
  const problems: string[] = [];
  if (!expected.test(group ?? '')) problems.push(`apiVersion: ${object.kind} is not of ${object.apiVersion}`);
  if (models[name] === undefined) return [`${object.apiVersion} ${object.kind} is unknown`];
  check(object, name, object.kind ?? '', problems);
  return problems;
}

function check(value: unknown, type: string, path: string, problems: string[]): void {
  const list = /^(?:Array|Set)<(.+)>$/.exec(type);
  const map = /^\{ \[key: string\]: (.+); \}$/.exec(type);
  if (list !== null) {
    if (!Array.isArray(value)) problems.push(`${path}: not a list`);
    else for (const [index, item] of value.entries()) check(item, list[1]!, `${path}[${index}]`, problems);
  } else if (map !== null) {
    if (!isMapping(value)) problems.push(`${path}: not a mapping`);
    else for (const [key, item] of Object.entries(value)) check(item, map[1]!, `${path}.${key}`, problems);
  } else if (models[type]?.getAttributeTypeMap !== undefined) checkModel(value, type, path, problems);
  else if (!isSimple(value, type)) problems.push(`${path}: ${JSON.stringify(value)} is no ${type}`);
}

function checkModel(value: unknown, type: string, path: string, problems: string[]): void {
  if (!isMapping(value)) {
    problems.push(`${path}: not a mapping`);
    return;
  }
  const attributes = new Map(models[type]!.getAttributeTypeMap().map((attribute) => [attribute.baseName, attribute]));
  for (const [key, item] of Object.entries(value)) {
    const attribute = attributes.get(key);
    if (attribute === undefined) problems.push(`${path}.${key}: unknown field`);
    else check(item, attribute.type, `${path}.${key}`, problems);
  }
  for (const key of required(type)) if (value[key] === undefined) problems.push(`${path}.${key}: missing`);
}

function isSimple(value: unknown, type: string): boolean {
  if (type === 'any' || type === 'object') return true;
  if (type === 'IntOrString') return typeof value === 'string' || Number.isInteger(value);
  if (type === 'number') return typeof value === 'number';
  if (type === 'boolean') return typeof value === 'boolean';
  return typeof value === 'string';
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Fields without a question mark in the declaration of the type. */
function required(type: string): Set<string> {
  const known = requiredOf.get(type);
  if (known !== undefined) return known;
  const url = new URL(`./gen/models/${type}.d.ts`, import.meta.resolve('@kubernetes/client-node'));
  const fields = readFileSync(url, 'utf8').matchAll(/^ {4}'(\w+)': /gm);
  const names = new Set([...fields].map(([, name]) => name!));
  requiredOf.set(type, names);
  return names;
}
