// TLS of a snapshot: which certificates go into which server context, and what backends are shown.
//
// Control thread. Pure: the texts of the files come in loaded and checked (gateway/certificates).
// Invariants: a context holds at most one certificate of each key type, as OpenSSL does; `key` is the
// same whenever everything that a worker puts into a context is the same, across reloads too.

import { createHash } from 'node:crypto';
import type { WorkloadCertificateSettings } from '../core/workers/mesh-settings.ts';
import type {
  BackendTlsSettings,
  ListenerTlsSettings,
  ServerContextSettings,
  TlsSettings,
} from '../core/workers/snapshot.ts';
import type { BackendConfig, CertificateFiles, Config, ListenerConfig, ListenerTlsConfig } from './config.ts';

/** A certificate that has been read and checked. */
export interface LoadedCertificate {
  /** Leaf first, then its issuers. */
  chainPem: string;
  keyPem: string;
  /** DNS names of the leaf, lower case. */
  names: readonly string[];
  /** OpenSSL's word for the type of key, such as `ec`, `rsa` or `ed25519`. */
  keyType: string;
}

/** What the files and the certificate authority have given. */
export interface TlsMaterial {
  /** The certificate of a pair of files of the configuration. */
  certificate(files: CertificateFiles): LoadedCertificate;
  /** The text of a file with authorities. */
  authorities(file: string): string;
  /** Certificates that ACME has brought for some of these names; those it has not are missing. */
  automatic(hostnames: readonly string[]): readonly LoadedCertificate[];
  /** See `TlsSettings.ticketKeys`. */
  readonly ticketKeys: readonly Uint8Array[];
}

/** Material of a configuration without TLS. Throws when asked for anything. */
export const NO_TLS_MATERIAL: TlsMaterial = {
  certificate: ({ certificateFile }) => {
    throw new Error(`${certificateFile} has not been loaded`);
  },
  authorities: (file) => {
    throw new Error(`${file} has not been loaded`);
  },
  automatic: () => [],
  ticketKeys: [],
};

/** TLS of all listeners and backends; lists have the order of the configuration. */
export interface CompiledTls {
  tls: TlsSettings;
  listeners: (ListenerTlsSettings | null)[];
  backends: (BackendTlsSettings | null)[];
}

/** A certificate of a listener and the names that it is for. */
export interface Candidate {
  certificate: LoadedCertificate;
  names: readonly string[];
}

/** Compiles TLS. */
export function compileTls(config: Config, material: TlsMaterial): CompiledTls {
  const contexts = new Contexts();
  return {
    listeners: config.listeners.map((listener) => listenerSettings(listener, config, material, contexts)),
    backends: config.backends.map((backend) => backendSettings(backend, material)),
    tls: { contexts: contexts.all, ticketKeys: [...material.ticketKeys] },
  };
}

// -- listeners -------------------------------------------------------------------

function listenerSettings(
  listener: ListenerConfig,
  config: Config,
  material: TlsMaterial,
  contexts: Contexts,
): ListenerTlsSettings | null {
  const { tls, mesh } = listener;
  const handshakeTimeoutMs = config.timeouts.tlsHandshakeMs;
  if (mesh?.role === 'tunnels') {
    const { certificate } = config.mesh!.workloads[mesh.workload]!;
    // Without a certificate, handshakes are refused.
    const defaultContext =
      certificate === null ? -1 : contexts.indexOf(tunnelContext(certificate), `tunnel ${certificate.key}`);
    return { passthrough: false, names: [], defaultContext, handshakeTimeoutMs };
  }
  if (tls === null) return null;
  if (tls.passthrough) return { passthrough: true, names: [], defaultContext: -1, handshakeTimeoutMs };
  const candidates: Candidate[] = tls.certificates.map((files) => {
    const certificate = material.certificate(files);
    return { certificate, names: files.hostnames ?? certificate.names };
  });
  if (tls.acme !== null) {
    const wanted = tls.acme.hostnames;
    for (const certificate of material.automatic(wanted)) {
      // A certificate may have been ordered together with names of other listeners.
      candidates.push({ certificate, names: wanted.filter((name) => certificate.names.includes(name)) });
    }
  }
  const byName = certificatesByName(candidates);
  const indexOf = (certificates: readonly LoadedCertificate[]): number =>
    contexts.indexOf(contextSettings(listener, tls, certificates, material));
  return {
    passthrough: false,
    names: [...byName]
      .filter(([hostname]) => hostname !== '')
      .map(([hostname, certificates]) => ({ hostname, context: indexOf(certificates) })),
    defaultContext: candidates.length === 0 ? -1 : indexOf(byName.get(nameOfDefault(candidates))!),
    handshakeTimeoutMs,
  };
}

/** What the tunnels (HBONE) of a workload begin with. A resumed session would outlive the trust in its first certificate. */
function tunnelContext({ chainPem, keyPem, caPem }: WorkloadCertificateSettings): Omit<ServerContextSettings, 'key'> {
  return {
    certificates: [{ chainPem, keyPem }],
    minVersion: '1.3',
    maxVersion: '1.3',
    cipherSuites: '',
    ciphers: '',
    alpn: ['h2'],
    clientValidation: { caPem, mode: 'required' },
    sessionTickets: false,
  };
}

/** The first certificate is for unknown names, together with those that share its first name. */
function nameOfDefault(candidates: readonly Candidate[]): string {
  return candidates[0]!.names[0] ?? '';
}

/**
 * The certificates for each name: the first one of each key type. One without names counts for the
 * empty name, and so for clients whose name is unknown if it comes first.
 */
export function certificatesByName(candidates: readonly Candidate[]): Map<string, LoadedCertificate[]> {
  const byName = new Map<string, LoadedCertificate[]>();
  for (const { certificate, names } of candidates) {
    for (const name of names.length === 0 ? [''] : names) {
      const certificates = byName.get(name) ?? [];
      if (certificates.some(({ keyType }) => keyType === certificate.keyType)) continue;
      byName.set(name, [...certificates, certificate]);
    }
  }
  return byName;
}

function contextSettings(
  listener: ListenerConfig,
  tls: ListenerTlsConfig,
  certificates: readonly LoadedCertificate[],
  material: TlsMaterial,
): Omit<ServerContextSettings, 'key'> {
  const { clientValidation } = tls;
  return {
    certificates: certificates.map(({ chainPem, keyPem }) => ({ chainPem, keyPem })),
    minVersion: tls.minVersion,
    maxVersion: tls.maxVersion,
    cipherSuites: tls.cipherSuites.join(':'),
    ciphers: tls.ciphers.join(':'),
    alpn: listener.protocols.filter((protocol) => protocol !== 'tcp'),
    clientValidation:
      clientValidation === null
        ? null
        : { caPem: material.authorities(clientValidation.caFile), mode: clientValidation.mode },
    sessionTickets: tls.sessionTickets,
  };
}

/** The contexts of a snapshot, each once. */
class Contexts {
  readonly all: ServerContextSettings[] = [];
  private readonly indexes = new Map<string, number>();

  indexOf(settings: Omit<ServerContextSettings, 'key'>, key: string = hashOf(settings)): number {
    const known = this.indexes.get(key);
    if (known !== undefined) return known;
    this.indexes.set(key, this.all.length);
    this.all.push({ key, ...settings });
    return this.all.length - 1;
  }
}

// -- backends --------------------------------------------------------------------

function backendSettings({ protocol, tls }: BackendConfig, material: TlsMaterial): BackendTlsSettings | null {
  if (tls === null) return null;
  const loaded = tls.certificate === null ? null : material.certificate(tls.certificate);
  const context = {
    caPem: tls.caFile === null ? null : material.authorities(tls.caFile),
    certificate: loaded === null ? null : { chainPem: loaded.chainPem, keyPem: loaded.keyPem },
    verify: tls.verify,
    minVersion: tls.minVersion,
    maxVersion: tls.maxVersion,
  };
  // The protocol decides what a context offers by ALPN.
  const key = hashOf({ ...context, protocol });
  return { key, serverName: tls.serverName, verifyNames: tls.subjectAltNames, ...context };
}

function hashOf(value: object): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex');
}
