// From the files of a mesh directory to a state of the mesh: what only shows when all of them are seen together.
//
// Control thread of the control plane. A file that clashes with others (a name or an address that is taken,
// a service that does not exist) is refused, and its last good content stands in for it. Who was there
// first stays: a file that is in use as it is goes before one that has changed.
// Beside another source, which has the services and workloads, files hold policies only; a traffic policy whose services
// are not there waits for them, and is no mistake: services of a cluster come and go without the files.
// Invariant: a file that was good and has not changed is never dropped because of another one; only a
// traffic policy in it whose service has gone is.

import type { ConfigError } from '../../config/errors.ts';
import { canonicalAddress } from '../../config/networks.ts';
import { suggest } from '../../core/process/suggest.ts';
import {
  type AuthorizationPolicy,
  type MeshMode,
  type MeshState,
  type PortMapping,
  policyKey,
  type Service,
  serviceKey,
  type Workload,
} from '../model/mesh-state.ts';
import { errorIn, type MeshDocument, type MeshFile } from './directory-file.ts';
import { hostnameOf, policyOf, portsOf, serviceOf, workloadOf } from './directory-model.ts';
import type { DocumentOf } from './directory-schema.ts';
import { judgePolicies, type PolicyWarningName } from './policy-warnings.ts';
import { BLIND_CHECK, isBlindCheck, parseTraffic, type Traffic, type TrafficProblems } from './traffic-rules.ts';

/** A file as it was found, and as it was last accepted. */
export interface Candidate {
  /** As it is now; null: it cannot be used in itself. */
  now: MeshFile | null;
  /** As it was last accepted; null: never. */
  good: MeshFile | null;
}

/** What files come to. */
export interface Assembly {
  /** Beside another source: its services that have a traffic policy, with that, and nothing but them. */
  state: MeshState;
  /** What is used of each file; null: nothing. */
  used: Map<string, MeshFile | null>;
  errors: ConfigError[];
  /** Authorisation policies that are valid, but hardly meant. */
  warnings: PolicyWarning[];
  /** Traffic policies in force. */
  traffic: AppliedTraffic[];
  /** Traffic policies that wait for services of another source. */
  waiting: ConfigError[];
}

/** A warning and its place. */
export interface PolicyWarning extends ConfigError {
  name: PolicyWarningName;
}

/** A traffic policy, and the service that it is for. */
export interface AppliedTraffic {
  file: MeshFile;
  document: MeshDocument;
  /** Key of the service. */
  service: string;
  traffic: Traffic;
}

/** Settings of a directory that documents do not say. */
export interface AssemblySettings {
  trustDomain: string;
  /** Ends the names of services, such as `cluster.local`. */
  domain: string;
  /**
   * Services of another source, which traffic policies are about; files then hold policies only. `unknown`: there is one,
   * and what it has cannot be told. Absent: services and workloads come from the files.
   */
  services?: ReadonlyMap<string, Service> | 'unknown';
}

/** Kinds that belong to the other source where there is one. */
const OF_THE_SOURCE: ReadonlySet<string> = new Set(['Workload', 'Service', 'Namespace']);

interface Item {
  file: MeshFile;
  document: MeshDocument;
}

interface Mistake extends Item {
  error: ConfigError;
}

type ServiceItem = Item & { value: DocumentOf<'Service'>; key: string };

/** Parsed traffic policies by document, with the names that they were parsed with. */
const parsedTraffic = new WeakMap<
  object,
  { key: string; names: Map<string, string>; result: Traffic | TrafficProblems }
>();

/** Puts files together. `candidates` by path. */
export function assemble(candidates: ReadonlyMap<string, Candidate>, settings: AssemblySettings): Assembly {
  const used = new Map<string, MeshFile | null>();
  for (const [path, { now, good }] of candidates) used.set(path, now ?? good);
  const errors: ConfigError[] = [];
  const dropped = new Set<MeshDocument>();
  for (;;) {
    const round = new Round(ordered(candidates, used), settings, dropped);
    if (round.mistakes.length === 0) {
      const state = round.state();
      return { state, used, errors, warnings: round.warnings(state), traffic: round.applied(), waiting: round.waiting };
    }
    const pathOf = new Map([...used].map(([path, file]) => [file, path]));
    const inChanged = round.mistakes.filter(({ file }) => candidates.get(pathOf.get(file)!)!.good !== file);
    for (const { file } of inChanged) used.set(pathOf.get(file)!, candidates.get(pathOf.get(file)!)!.good);
    // Only when no change is to blame is something taken out of a file that was good.
    if (inChanged.length === 0) for (const { document } of round.mistakes) dropped.add(document);
    errors.push(...(inChanged.length > 0 ? inChanged : round.mistakes).map(({ error }) => error));
  }
}

/** Files in use as they are first, the changed ones after them, each in the order of their names. */
function ordered(candidates: ReadonlyMap<string, Candidate>, used: ReadonlyMap<string, MeshFile | null>): MeshFile[] {
  const paths = [...used.keys()].sort();
  const isSame = (path: string): boolean => used.get(path) === candidates.get(path)!.good;
  return [...paths.filter(isSame), ...paths.filter((path) => !isSame(path))].flatMap((path) => used.get(path) ?? []);
}

/** One attempt with certain files. */
class Round {
  readonly mistakes: Mistake[] = [];
  private readonly settings: AssemblySettings;
  private readonly workloads: (Item & { value: DocumentOf<'Workload'> })[] = [];
  private readonly services = new Map<string, ServiceItem>();
  /** What is decided for namespaces, by their names. */
  private readonly modes = new Map<string, MeshMode | undefined>();
  private readonly policies = new Map<string, Item & { policy: AuthorizationPolicy }>();
  private readonly traffic = new Map<string, Traffic>();
  private readonly trafficOwners = new Map<string, Item>();
  /** What waits for services of another source. */
  readonly waiting: ConfigError[] = [];
  private readonly hostOwners = new Map<string, Item>();

  constructor(files: readonly MeshFile[], settings: AssemblySettings, dropped: ReadonlySet<MeshDocument>) {
    this.settings = settings;
    const items = files.flatMap((file) => file.documents.map((document) => ({ file, document })));
    const kept = items.filter(({ document }) => !dropped.has(document));
    const names = new Map<string, Item>();
    for (const item of kept) {
      if (this.taken(names, item.document.name, item, ['metadata', 'name'], item.document.name)) continue;
      this.add(item);
    }
    this.checkAddresses();
    for (const item of kept) if (names.get(item.document.name) === item) this.addTraffic(item);
  }

  /** The state, when there was no mistake. */
  state(): MeshState {
    const { trustDomain, domain, services: others } = this.settings;
    const services = new Map<string, Service>();
    if (others !== undefined && others !== 'unknown') {
      for (const [key, traffic] of this.traffic) services.set(key, { ...others.get(key)!, ...traffic });
    }
    const bySelector = new Map<string, ServiceItem[]>();
    for (const [key, item] of this.services) {
      services.set(key, serviceOf(item.value, domain, this.traffic.get(key)));
      const { namespace } = item.document;
      if (item.value.spec.selector !== undefined)
        bySelector.set(namespace, [...(bySelector.get(namespace) ?? []), item]);
    }
    const workloads = new Map<string, Workload>();
    for (const { value, document } of this.workloads) {
      const of: Record<string, PortMapping[]> = {};
      const labels = value.metadata.labels ?? {};
      for (const { key, value: service } of bySelector.get(document.namespace) ?? []) {
        const wanted = Object.entries(service.spec.selector!);
        if (wanted.every(([name, text]) => labels[name] === text)) of[key] = portsOf(service);
      }
      const workload = workloadOf(value, trustDomain, of, this.modes.get(document.namespace));
      workloads.set(workload.uid, workload);
    }
    const policies = new Map([...this.policies].map(([key, { policy }]) => [key, policy]));
    return { workloads, services, policies, trustDomain };
  }

  /** What is hardly meant of the policies of the state that this has come to. */
  warnings(state: MeshState): PolicyWarning[] {
    return judgePolicies(state).map(({ name, policy, path, problem }) => {
      const { file, document } = this.policies.get(policyKey(policy))!;
      return { ...errorIn(file, document, path, { problem }), name };
    });
  }

  /** The traffic policies in force. */
  applied(): AppliedTraffic[] {
    return [...this.traffic].map(([service, traffic]) => {
      const { file, document } = this.trafficOwners.get(service)!;
      return { file, document, service, traffic };
    });
  }

  private add(item: Item): void {
    const { file, document } = item;
    if (this.settings.services !== undefined && OF_THE_SOURCE.has(document.kind)) {
      const problem = `${document.kind}s of this mesh come from its other source`;
      const error = { problem, expected: 'AuthorizationPolicy or TrafficPolicy' };
      this.mistakes.push({ ...item, error: errorIn(file, document, ['kind'], error) });
    } else if (document.kind === 'Workload') {
      this.workloads.push({ ...item, value: document.value });
    } else if (document.kind === 'Namespace') {
      this.modes.set(document.value.metadata.name, document.value.spec.mode);
    } else if (document.kind === 'AuthorizationPolicy') {
      const policy = policyOf(document.value);
      this.policies.set(policyKey(policy), { ...item, policy });
    } else if (document.kind === 'Service') {
      const hostname = hostnameOf(document.value, this.settings.domain);
      const key = serviceKey({ namespace: document.namespace, hostname });
      if (this.taken(this.hostOwners, key, item, ['spec', 'hostname'], `hostname ${hostname}`)) return;
      this.services.set(key, { ...item, value: document.value, key });
    }
  }

  /** An address stands for one workload or service, or nobody could tell which is meant. */
  private checkAddresses(): void {
    const owners = new Map<string, Item>();
    for (const item of this.services.values()) {
      item.value.spec.addresses?.forEach((address, i) => {
        this.taken(owners, canonicalAddress(address), item, ['spec', 'addresses', i], `address ${address}`);
      });
    }
    for (const item of this.workloads) {
      if (item.value.spec.hostNetwork === true) continue;
      item.value.spec.addresses.forEach((address, i) => {
        this.taken(owners, canonicalAddress(address), item, ['spec', 'addresses', i], `address ${address}`);
      });
    }
  }

  private addTraffic(item: Item): void {
    const { file, document } = item;
    if (document.kind !== 'TrafficPolicy') return;
    const { spec } = document.value;
    const key = this.serviceNamed(spec.service, document.namespace);
    if (key === undefined && this.settings.services !== undefined) {
      this.wait(item, spec.service);
      return;
    }
    if (key === undefined) {
      const known = [...this.services.values()].filter((one) => one.document.namespace === document.namespace);
      const hint = suggest(
        spec.service,
        known.map(({ value }) => value.metadata.name),
      );
      const problem = `spec.service: there is no service ${JSON.stringify(spec.service)}`;
      this.mistakes.push({ ...item, error: errorIn(file, document, ['spec', 'service'], { problem, hint }) });
      return;
    }
    if (this.taken(this.trafficOwners, key, item, ['spec', 'service'], `a traffic policy for ${key}`)) return;
    const result = this.parse(document.value, key, document.namespace);
    const { services: others } = this.settings;
    if (others !== undefined && 'missing' in result && result.missing.length === result.violations.length) {
      this.wait(item, result.missing[0]!);
      return;
    }
    if ('violations' in result) {
      for (const { path, part, problem, expected, hint } of result.violations) {
        const error = { problem: `spec.${problem}`, expected, hint };
        this.mistakes.push({ ...item, error: errorIn(file, document, ['spec', ...path], error, part) });
      }
      return;
    }
    if (this.isBlind(key, result)) {
      const path = ['spec', 'backend', 'healthCheck', 'type'];
      const error = { problem: `spec.backend.healthCheck.type: ${BLIND_CHECK}`, expected: 'HTTP or GRPC' };
      this.mistakes.push({ ...item, error: errorIn(file, document, path, error) });
      return;
    }
    this.traffic.set(key, result);
  }

  /** Whether the health check of a traffic policy would say nothing on any port of its service. */
  private isBlind(key: string, { backend }: Traffic): boolean {
    const { services: others } = this.settings;
    const own = this.services.get(key);
    const known = others === 'unknown' ? undefined : others?.get(key);
    const service = own === undefined ? known : serviceOf(own.value, this.settings.domain, undefined);
    const check = backend?.healthCheck ?? null;
    if (check === null || service === undefined || service.ports.length === 0) return false;
    return service.ports.every((port) => isBlindCheck(check, service, port));
  }

  /** A traffic policy needs a service that the other source does not have now. */
  private wait({ file, document }: Item, service: string): void {
    const problem = `${document.name} is not in use: there is no service ${JSON.stringify(service)} now`;
    this.waiting.push(errorIn(file, document, ['spec', 'service'], { problem }));
  }

  /** Parses a traffic policy, unless it was parsed before with the same services behind its names. */
  private parse(value: DocumentOf<'TrafficPolicy'>, key: string, namespace: string): Traffic | TrafficProblems {
    const known = parsedTraffic.get(value);
    const same = (names: Map<string, string>): boolean =>
      [...names].every(([name, target]) => this.serviceNamed(name, namespace) === target);
    if (known !== undefined && known.key === key && same(known.names)) return known.result;
    const names = new Map<string, string>();
    const { service: _, ...written } = value.spec;
    const result = parseTraffic(written, key, (name) => {
      const target = this.serviceNamed(name, namespace);
      if (target !== undefined) names.set(name, target);
      return target;
    });
    if (!('violations' in result)) parsedTraffic.set(value, { key, names, result });
    return result;
  }

  /** Key of the service called so: by its name, by name and namespace, or by its hostname. */
  private serviceNamed(name: string, namespace: string): string | undefined {
    const { domain } = this.settings;
    const text = name.toLowerCase().replace(/\.$/, '');
    const others = this.settings.services;
    if (others === 'unknown') return text.includes('/') ? undefined : `${namespace}/${text}`;
    const candidates = [
      `${namespace}/${text}.${namespace}.svc.${domain}`,
      `${text.slice(text.indexOf('.') + 1)}/${text}.svc.${domain}`,
      `${namespace}/${text}`,
    ];
    const direct = candidates.find((key) => this.services.has(key) || others?.has(key));
    if (direct !== undefined) return direct;
    for (const key of others?.keys() ?? []) if (key.endsWith(`/${text}`)) return key;
    for (const [key, { value, document }] of this.services) {
      if (key.endsWith(`/${text}`)) return key;
      if (document.namespace === namespace && value.metadata.name === text) return key;
    }
    return undefined;
  }

  /** Whether somebody else has this already, which is then a mistake; else it is taken now. */
  private taken(
    owners: Map<string, Item>,
    what: string,
    item: Item,
    path: (string | number)[],
    shown: string,
  ): boolean {
    const first = owners.get(what);
    if (first === undefined) {
      owners.set(what, item);
      return false;
    }
    if (first.document === item.document) return false;
    const other = errorIn(first.file, first.document, path.slice(0, 2), { problem: '' });
    const problem = `${shown} is taken already by ${first.document.name} at ${other.file}:${other.line}:${other.column}`;
    this.mistakes.push({ ...item, error: errorIn(item.file, item.document, path, { problem }) });
    return true;
  }
}
