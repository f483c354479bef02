// The configuration of the control plane as the program uses it: absolute paths, every default filled in.
//
// Control thread of the control plane.

import { hostname, networkInterfaces } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import type { Environment } from '../../config/env.ts';
import type { ConfigError } from '../../config/errors.ts';
import { loadValueFile } from '../../config/load.ts';
import { listenAddress } from '../../config/names.ts';
import { parseDurationMs } from '../../config/units.ts';
import type { LogLevel } from '../../core/workers/log.ts';
import type { IssuerFiles } from '../identity/issuer.ts';
import { CONTROL_ADMIN_DEFAULT, type ControlInput, checkControl } from './control-schema.ts';

/** A socket's address. */
export interface ListenAddress {
  host: string;
  port: number;
}

/** A directory of YAML files. */
export interface DirectoryConfig {
  directory: string;
  lastGoodDirectory: string;
}

/** Where the mesh comes from. */
export type SourceConfig =
  | ({ kind: 'directory' } & DirectoryConfig)
  | {
      kind: 'kubernetes';
      clusterId: string;
      kubeConfig: string | null;
      context: string | null;
      meshByDefault: boolean;
      /** Policies beside it; null: there are none. */
      policies: DirectoryConfig | null;
    };

/** How callers prove who they are; taken anew at a reload. */
export interface AttestationConfig {
  /** Null: join tokens are not taken. */
  joinTokenDirectory: string | null;
  /** Null: tokens of service accounts are not taken. */
  kubernetes: { audience: string; nodeAccounts: readonly string[] } | null;
  blockedIdentities: readonly string[];
}

/** A valid configuration. */
export interface ControlConfig {
  trustDomain: string;
  clusterDomain: string;
  listen: ListenAddress;
  /** DNS names and IP addresses of the server's certificate. */
  serverNames: readonly string[];
  serviceAccount: { namespace: string; name: string };
  admin: ListenAddress | null;
  logLevel: LogLevel;
  ca: { directory: string; files: IssuerFiles | null; nextFiles: IssuerFiles | null; certificateLifetimeMs: number };
  source: SourceConfig;
  attestation: AttestationConfig;
}

/** Loads a configuration file: all of it, or everything that is wrong with it. */
export function loadControl(file: string, env: Environment): { config: ControlConfig } | { errors: ConfigError[] } {
  const loaded = loadValueFile(file, env, (value) => checkControl(value, file));
  return 'errors' in loaded ? loaded : { config: normalise(loaded.value as ControlInput, file) };
}

/** Keys of the top level that a reload has changed and that only take effect after a restart. */
export function restartOnlyChanges(before: ControlConfig, after: ControlConfig): string[] {
  const own = ({ logLevel: _, attestation: __, ...rest }: ControlConfig): Record<string, unknown> => rest;
  const [old, now] = [own(before), own(after)];
  return Object.keys(now).filter((key) => JSON.stringify(old[key]) !== JSON.stringify(now[key]));
}

function normalise(input: ControlInput, file: string): ControlConfig {
  const absolute = (path: string): string => resolve(dirname(file), path);
  const listen = address(input.listen ?? ':15012');
  const caDirectory = absolute(input.ca.directory);
  const { files, nextFiles } = input.ca;
  const issuerFiles = (given: typeof files): IssuerFiles | null =>
    given === undefined
      ? null
      : {
          rootCertificate: absolute(given.rootCertificate),
          certificate: absolute(given.certificate),
          key: absolute(given.key),
        };
  const [namespace = '', name = ''] = (input.serviceAccount ?? 'portcullis/portcullis-control').split('/');
  const { admin = {} } = input;
  return {
    trustDomain: input.trustDomain,
    clusterDomain: input.clusterDomain ?? 'cluster.local',
    listen,
    serverNames: input.serverNames ?? namesOf(listen.host),
    serviceAccount: { namespace, name },
    admin: admin === 'off' ? null : address(admin.address ?? CONTROL_ADMIN_DEFAULT),
    logLevel: input.log?.level ?? 'info',
    ca: {
      directory: caDirectory,
      files: issuerFiles(files),
      nextFiles: issuerFiles(nextFiles),
      certificateLifetimeMs: parseDurationMs(String(input.ca.certificateLifetime ?? '24h'))!,
    },
    source: sourceOf(input.source, absolute, join(dirname(caDirectory), 'last-good')),
    attestation: attestationOf(input.attestation ?? {}, absolute, join(dirname(caDirectory), 'join-tokens')),
  };
}

function sourceOf(
  { directory, lastGoodDirectory, kubernetes }: ControlInput['source'],
  absolute: (path: string) => string,
  lastGoodDefault: string,
): SourceConfig {
  const files: DirectoryConfig | null =
    directory === undefined
      ? null
      : {
          directory: absolute(directory),
          lastGoodDirectory: lastGoodDirectory === undefined ? lastGoodDefault : absolute(lastGoodDirectory),
        };
  if (kubernetes === undefined) return { kind: 'directory', ...files! };
  const { clusterId = 'Kubernetes', kubeConfig, context = null, meshByDefault = false } = kubernetes;
  const kubeConfigFile = kubeConfig === undefined ? null : absolute(kubeConfig);
  return { kind: 'kubernetes', clusterId, kubeConfig: kubeConfigFile, context, meshByDefault, policies: files };
}

function attestationOf(
  { joinTokens = {}, kubernetes, blockedIdentities = [] }: NonNullable<ControlInput['attestation']>,
  absolute: (path: string) => string,
  tokensDefault: string,
): AttestationConfig {
  const tokens = joinTokens === 'off' ? null : joinTokens.directory;
  return {
    joinTokenDirectory: tokens === null ? null : tokens === undefined ? tokensDefault : absolute(tokens),
    kubernetes:
      kubernetes === undefined
        ? null
        : { audience: kubernetes.audience ?? 'portcullis', nodeAccounts: kubernetes.nodeAccounts ?? [] },
    blockedIdentities,
  };
}

/** Names by which a server on an address is probably reached. */
function namesOf(host: string): string[] {
  const own = hostname().toLowerCase();
  const names = ['localhost', ...(/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(own) ? [own] : [])];
  const all = host === '0.0.0.0' || host === '::';
  const addresses = Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .filter(({ family }) => host === '::' || family === 'IPv4')
    // Addresses of one link are no names that a certificate can hold.
    .filter(({ scopeid }) => scopeid === undefined || scopeid === 0)
    .map((one) => one.address);
  return [...new Set([...names, ...(all ? addresses : [host])])];
}

function address(text: string): ListenAddress {
  const { host, port } = listenAddress(text);
  return { host, port };
}
