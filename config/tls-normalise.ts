// TLS of listeners and backends from the configuration as written to the one the program uses.
//
// Control thread. A part of normalise.ts, with its terms: valid input, defaults filled in. What is
// default only in view of other keys (protocols, the name of a backend) is decided here.

import type { BackendTlsConfig, EndpointConfig, ListenerProtocol, ListenerTlsConfig, TlsVersion } from './config.ts';
import { canonicalHostname } from './names.ts';
import type { ConfigInput } from './schema.ts';

type ListenerInput = ConfigInput['listeners'][number];
type ListenerTlsInput = NonNullable<ListenerInput['tls']>;
type BackendTlsInput = NonNullable<ConfigInput['backends'][number]['tls']>;

/** Makes a path of the file absolute. */
type FileOf = (name: string) => string;

/** Protocols of a listener; those left out follow from its TLS. Takes also input without defaults. */
export function listenerProtocols(input: {
  protocols?: readonly ListenerProtocol[] | undefined;
  tls?: { mode?: unknown } | undefined;
}): ListenerProtocol[] {
  if (input.protocols !== undefined) return [...input.protocols];
  if (input.tls === undefined) return ['http/1.1', 'h2c'];
  return input.tls.mode === 'Passthrough' ? ['tcp'] : ['h2', 'http/1.1'];
}

/** TLS of a listener. */
export function listenerTlsConfig(input: ListenerTlsInput, fileOf: FileOf): ListenerTlsConfig {
  return {
    passthrough: input.mode === 'Passthrough',
    certificates: input.certificates!.map(({ certificate, key, hostnames }) => ({
      certificateFile: fileOf(certificate),
      keyFile: fileOf(key),
      hostnames: hostnames?.map(canonicalHostname) ?? null,
    })),
    minVersion: versionText(input.minVersion!),
    maxVersion: versionText(input.maxVersion!),
    ciphers: input.ciphers ?? [],
    cipherSuites: input.cipherSuites ?? [],
    clientValidation:
      input.clientValidation === undefined
        ? null
        : { caFile: fileOf(input.clientValidation.caCertificates), mode: input.clientValidation.mode! },
    sessionTickets: input.sessionTickets!,
    acme:
      input.acme === undefined
        ? null
        : { hostnames: input.acme.hostnames.map(canonicalHostname), challenge: input.acme.challenge! },
  };
}

/** TLS towards a backend with these endpoints. */
export function backendTlsConfig(
  input: BackendTlsInput,
  endpoints: readonly Pick<EndpointConfig, 'host' | 'isIp'>[],
  fileOf: FileOf,
): BackendTlsConfig {
  const { certificate, key } = input;
  return {
    serverName: input.serverName === undefined ? (commonHost(endpoints) ?? '') : canonicalName(input.serverName),
    subjectAltNames: input.subjectAltNames?.map(canonicalName) ?? null,
    caFile: input.caCertificates === undefined ? null : fileOf(input.caCertificates),
    certificate:
      certificate === undefined || key === undefined
        ? null
        : { certificateFile: fileOf(certificate), keyFile: fileOf(key) },
    verify: !input.insecureSkipVerify!,
    minVersion: versionText(input.minVersion!),
    maxVersion: versionText(input.maxVersion!),
  };
}

/** The DNS name that all endpoints share, or undefined. */
export function commonHost(endpoints: readonly Pick<EndpointConfig, 'host' | 'isIp'>[]): string | undefined {
  const [first] = endpoints;
  if (first === undefined) return undefined;
  return endpoints.every(({ host, isIp }) => !isIp && host === first.host) ? first.host : undefined;
}

/** YAML reads 1.2 as a number. */
function versionText(value: string | number): TlsVersion {
  return String(value) as TlsVersion;
}

/** URIs are compared exactly, names without regard to case and to a dot at their end. */
function canonicalName(name: string): string {
  return name.includes('://') ? name : name.toLowerCase().replace(/\.$/, '');
}
