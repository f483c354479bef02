// Workloads and services between the model and istio.workload.Address.
//
// Control threads. Decoding trusts nothing: what a proxy could not act on is refused with a reason.
// What the public messages cannot say travels in their extensions, see mesh.proto.

import { canonicalAddress } from '../../config/networks.ts';
import { encodeSockaddr, Family } from '../../core/ffi/sockaddr.ts';
import {
  type PortProtocol,
  type Service,
  serviceKey,
  type TunnelProtocol,
  type Workload,
  type WorkloadStatus,
} from '../model/mesh-state.ts';
import { type AnyMessage, codec, Extension } from './protocol.ts';
import { readConfiguration } from './traffic-rules.ts';

/** istio.workload.Extension. */
export interface ExtensionMessage {
  name: string;
  config: AnyMessage | null;
}

interface PortMessage {
  servicePort: number;
  targetPort: number;
  appProtocol?: string;
}

interface ServiceMessage {
  name: string;
  namespace: string;
  hostname: string;
  addresses: { network: string; address: Uint8Array }[];
  ports: PortMessage[];
  extensions: ExtensionMessage[];
}

interface WorkloadMessage {
  uid: string;
  name: string;
  namespace: string;
  addresses: Uint8Array[];
  tunnelProtocol: string;
  trustDomain: string;
  serviceAccount: string;
  node: string;
  canonicalName: string;
  services: Record<string, { ports: PortMessage[] }>;
  authorizationPolicies: string[];
  status: string;
  locality: { region: string; zone: string; subzone: string } | null;
  networkMode: string;
  /** It takes its tunnels itself. */
  nativeTunnel: boolean;
  extensions: ExtensionMessage[];
}

interface DetailsMessage {
  draining: boolean;
  networkNamespace: string;
  labels: Record<string, string>;
  mode: string;
  podUid: string;
}

interface AddressMessage {
  workload?: WorkloadMessage;
  service?: ServiceMessage;
}

const addressCodec = codec<AddressMessage>('istio.workload.Address');
const configurationCodec = codec<{ json: Uint8Array; version: string }>('portcullis.mesh.v1.ServiceConfiguration');
const detailsCodec = codec<DetailsMessage>('portcullis.mesh.v1.WorkloadDetails');

/** Trust domain and service account that are left out of messages (istio.workload). */
const TRUST_DOMAIN_DEFAULT = 'cluster.local';
const SERVICE_ACCOUNT_DEFAULT = 'default';

const appProtocols: Record<PortProtocol, string> = {
  http: 'HTTP11',
  http2: 'HTTP2',
  grpc: 'GRPC',
  tcp: 'TCP',
  auto: 'UNKNOWN',
};

/** TLS of the application is bytes for the proxy, and what it does not know is found out. */
const portProtocols: Record<string, PortProtocol> = {
  HTTP11: 'http',
  HTTP2: 'http2',
  GRPC: 'grpc',
  TCP: 'tcp',
  TLS: 'tcp',
};

const wireModes = { strict: 'STRICT', permissive: 'PERMISSIVE' } as const;

/** Sets of labels that were decoded, by their text: instances of one thing share theirs. */
const labelSets = new Map<string, Workload['labels']>();
const LABEL_SETS_MAX = 4096;

/** Encodes a workload; `policies` are the keys of the policies whose selectors match it. */
export function encodeWorkload(workload: Workload, policies: readonly string[]): Buffer {
  const { uid, name, namespace, trustDomain, serviceAccount, node, canonicalName, locality } = workload;
  const services: WorkloadMessage['services'] = {};
  for (const key of Object.keys(workload.services).sort()) services[key] = { ports: [...workload.services[key]!] };
  const details = detailsOf(workload);
  return addressCodec.encode({
    workload: {
      ...{ uid, name, namespace, node, canonicalName, services },
      addresses: workload.addresses.flatMap(addressBytes),
      tunnelProtocol: workload.protocol === 'hbone' ? 'HBONE' : 'NONE',
      trustDomain: trustDomain === TRUST_DOMAIN_DEFAULT ? '' : trustDomain,
      serviceAccount: serviceAccount === SERVICE_ACCOUNT_DEFAULT ? '' : serviceAccount,
      authorizationPolicies: [...policies],
      status: workload.status === 'healthy' ? 'HEALTHY' : 'UNHEALTHY',
      locality: Object.values(locality).some((part) => part !== '') ? { ...locality } : null,
      networkMode: workload.hostNetwork ? 'HOST_NETWORK' : 'STANDARD',
      nativeTunnel: workload.sidecar === true,
      extensions:
        details === null
          ? []
          : [extension(Extension.WORKLOAD, 'portcullis.mesh.v1.WorkloadDetails', detailsCodec.encode(details))],
    },
  });
}

/** What the public message cannot say of a workload; null: nothing. */
function detailsOf({ labels, mode, networkNamespace = '', podUid = '', status }: Workload): DetailsMessage | null {
  const names = Object.keys(labels).sort();
  const draining = status === 'draining';
  if (names.length === 0 && mode === undefined && networkNamespace === '' && podUid === '' && !draining) return null;
  return {
    draining,
    networkNamespace,
    // In one order, so that the version changes exactly when they do.
    labels: Object.fromEntries(names.map((name) => [name, labels[name]!])),
    mode: mode === undefined ? 'MODE_UNSPECIFIED' : wireModes[mode],
    podUid,
  };
}

/** Encodes a service; `version` changes exactly when its configuration does. */
export function encodeService(service: Service, version: string): Buffer {
  const { name, namespace, hostname, vips, ports, configuration } = service;
  const json = { json: Buffer.from(configuration ?? ''), version };
  return addressCodec.encode({
    service: {
      ...{ name, namespace, hostname },
      addresses: vips.flatMap(addressBytes).map((address) => ({ network: '', address })),
      ports: ports.map((port) => ({ ...port, appProtocol: appProtocols[port.protocol] })),
      extensions:
        configuration === null
          ? []
          : [
              extension(
                Extension.CONFIGURATION,
                'portcullis.mesh.v1.ServiceConfiguration',
                configurationCodec.encode(json),
              ),
            ],
    },
  });
}

/** A workload or service from its bytes. Throws an Error with the reason when it cannot be used. */
export function decodeAddress(bytes: Uint8Array): { workload: Workload } | { service: Service } {
  const { workload, service } = addressCodec.decode(bytes);
  if (workload !== undefined) return { workload: workloadOf(workload) };
  if (service !== undefined) return { service: serviceOf(service) };
  throw new Error('it is neither a workload nor a service');
}

/** What an extension holds; undefined when it is not there. */
export function extensionBytes(extensions: readonly ExtensionMessage[], name: string): Uint8Array | undefined {
  return extensions.find((one) => one.name === name)?.config?.value;
}

/** An extension that holds a message of ours. */
export function extension(name: string, message: string, value: Uint8Array): ExtensionMessage {
  return { name, config: { type_url: `type.googleapis.com/${message}`, value } };
}

function workloadOf(message: WorkloadMessage): Workload {
  if (message.uid === '') throw new Error('it has no uid');
  const bytes = extensionBytes(message.extensions, Extension.WORKLOAD);
  const details = bytes === undefined ? undefined : detailsCodec.decode(bytes);
  const { uid, name, namespace, node, canonicalName, locality } = message;
  return {
    ...{ uid, name, namespace, node, canonicalName },
    trustDomain: message.trustDomain || TRUST_DOMAIN_DEFAULT,
    serviceAccount: message.serviceAccount || SERVICE_ACCOUNT_DEFAULT,
    addresses: message.addresses.map(addressText),
    hostNetwork: message.networkMode === 'HOST_NETWORK',
    protocol: tunnelOf(message.tunnelProtocol),
    status: statusOf(message.status, details?.draining === true),
    locality: locality ?? { region: '', zone: '', subzone: '' },
    labels: details === undefined ? {} : shared(details.labels),
    services: Object.fromEntries(
      Object.entries(message.services).map(([key, { ports }]) => [key, ports.map((port) => portMapping(port, true))]),
    ),
    ...(details === undefined || details.networkNamespace === '' ? {} : { networkNamespace: details.networkNamespace }),
    ...(details === undefined || details.podUid === '' ? {} : { podUid: details.podUid }),
    ...(message.nativeTunnel ? { sidecar: true as const } : {}),
    ...(details === undefined ? {} : modeOf(details.mode)),
    authorizationPolicies: message.authorizationPolicies,
  };
}

function serviceOf(message: ServiceMessage): Service {
  const { name, namespace, hostname } = message;
  if (hostname === '') throw new Error('it has no hostname');
  const bytes = extensionBytes(message.extensions, Extension.CONFIGURATION);
  const json = bytes === undefined ? '' : Buffer.from(configurationCodec.decode(bytes).json).toString();
  const traffic = json === '' ? null : readConfiguration(json, serviceKey({ namespace, hostname }));
  return {
    ...{ name, namespace, hostname },
    vips: message.addresses.map(({ address }) => addressText(address)),
    ports: message.ports.map((port) => ({
      ...portMapping(port, false),
      protocol: portProtocols[port.appProtocol ?? ''] ?? 'auto',
    })),
    rules: traffic?.rules ?? null,
    backend: traffic?.backend ?? null,
    configuration: traffic?.configuration ?? null,
  };
}

function portMapping({ servicePort, targetPort }: PortMessage, ofWorkload: boolean): Workload['services'][string][0] {
  for (const port of [servicePort, targetPort]) {
    if (port > 65535) throw new Error(`${port} is not a port`);
  }
  if (servicePort === 0) throw new Error('a service port is 0');
  if (ofWorkload && targetPort === 0)
    throw new Error(`no port of the workload is given for service port ${servicePort}`);
  return { servicePort, targetPort };
}

function tunnelOf(protocol: string): TunnelProtocol {
  if (protocol === 'HBONE') return 'hbone';
  // Plaintext instead of a kind of encryption that is not known here would be the wrong answer.
  if (protocol !== 'NONE') throw new Error(`tunnel protocol ${protocol} is not known`);
  return 'none';
}

function modeOf(mode: string): Pick<Workload, 'mode'> {
  if (mode === 'MODE_UNSPECIFIED') return {};
  // Taking plain text where something else is wanted would be the wrong answer.
  return { mode: mode === 'PERMISSIVE' ? 'permissive' : 'strict' };
}

/** The same object for the same labels. */
function shared(labels: Workload['labels']): Workload['labels'] {
  const key = JSON.stringify(labels);
  const known = labelSets.get(key);
  if (known !== undefined) return known;
  if (labelSets.size >= LABEL_SETS_MAX) labelSets.clear();
  labelSets.set(key, labels);
  return labels;
}

function statusOf(status: string, draining: boolean): WorkloadStatus {
  if (draining) return 'draining';
  return status === 'HEALTHY' ? 'healthy' : 'unhealthy';
}

/** The bytes of an IP address, as a list; none when the text is no address. */
export function addressBytes(text: string): Uint8Array[] {
  const sockaddr = encodeSockaddr(text, 0);
  if (sockaddr === undefined) return [];
  return [sockaddr[0] === Family.INET ? sockaddr.slice(4, 8) : sockaddr.slice(8, 24)];
}

/** The canonical text of an IP address in 4 or 16 bytes. Throws an Error for any other length. */
export function addressText(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join('.');
  if (bytes.length !== 16) throw new Error(`an address has ${bytes.length} bytes, not 4 or 16`);
  const groups = Array.from({ length: 8 }, (_, i) => ((bytes[i * 2]! << 8) | bytes[i * 2 + 1]!).toString(16));
  return canonicalAddress(groups.join(':'));
}
