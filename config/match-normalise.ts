// Matches as the program uses them: gRPC as the path that it is, names in the form they are compared in.
//
// Control thread. Runs only on input that passed validation and semantic checks.

import { quoteRegex } from '../core/routing/regex-syntax.ts';
import type { MatchConfig } from './config.ts';
import { canonicalAddress } from './networks.ts';
import type { ConfigInput } from './schema.ts';

type MatchInput = NonNullable<ConfigInput['routes'][number]['rules'][number]['matches']>[number];

/** What a match asks for beyond the path. */
export interface MatchConditionsConfig {
  /** Null: any. */
  method: string | null;
  /** Names in lower case, each once. */
  headers: TextMatchConfig[];
  /** Percent-decoded. */
  queryParams: TextMatchConfig[];
  /** Null: not only gRPC. */
  grpc: GrpcMatchConfig | null;
  /** Null: any client. */
  clientCertificate: { subjectAltNames: NameMatchConfig[]; sha256: string[] } | null;
  /** Networks of which one has the client's address; null: any. */
  sourceAddresses: string[] | null;
}

/** A field or query parameter and its value. */
export interface TextMatchConfig {
  name: string;
  type: 'Exact' | 'RegularExpression';
  value: string;
}

/** A call of gRPC. */
export interface GrpcMatchConfig {
  /** What the whole path must match where the path of the match does not say it all; else null. */
  pathPattern: string | null;
  /** Characters of the method's name where the path of the match does not have it, for the precedence. */
  methodLength: number;
}

/** A name in a certificate. */
export interface NameMatchConfig {
  type: 'Exact' | 'Prefix' | 'RegularExpression';
  value: string;
}

/** The match that `input` (with defaults filled in) describes. */
export function matchConfig(input: MatchInput): MatchConfig {
  const { grpc } = input;
  const path = grpc === undefined ? { type: input.path!.type!, value: input.path!.value! } : grpcPath(grpc);
  const conditions: MatchConditionsConfig = {
    method: input.method ?? null,
    headers: (input.headers ?? []).map(({ name, type, value }) => ({ name: name.toLowerCase(), type: type!, value })),
    queryParams: (input.queryParams ?? []).map(({ name, type, value }) => ({ name, type: type!, value })),
    grpc: grpc === undefined ? null : grpcCondition(grpc),
    clientCertificate: input.clientCertificate === undefined ? null : certificateCondition(input.clientCertificate),
    sourceAddresses: input.sourceAddresses ?? null,
  };
  const any =
    conditions.method !== null ||
    conditions.headers.length > 0 ||
    conditions.queryParams.length > 0 ||
    conditions.grpc !== null ||
    conditions.clientCertificate !== null ||
    conditions.sourceAddresses !== null;
  return { path, conditions: any ? conditions : null };
}

/** The pattern of the whole path of a call; null stands for any service, or method. */
export function grpcPathPattern(service: string | null, method: string | null): string {
  const group = (pattern: string | null): string => (pattern === null ? '[^/]+' : `(?:${pattern})`);
  return `/${group(service)}/${group(method)}`;
}

/** The most specific path that all calls of the match have. */
function grpcPath({ type, service, method }: NonNullable<MatchInput['grpc']>): MatchConfig['path'] {
  if (type === 'RegularExpression' && (service !== undefined || method !== undefined)) {
    return { type: 'RegularExpression', value: grpcPathPattern(service ?? null, method ?? null) };
  }
  if (service === undefined) return { type: 'PathPrefix', value: '/' };
  return method === undefined
    ? { type: 'PathPrefix', value: `/${service}` }
    : { type: 'Exact', value: `/${service}/${method}` };
}

function grpcCondition({ type, service, method }: NonNullable<MatchInput['grpc']>): GrpcMatchConfig {
  const whole = service !== undefined && method !== undefined;
  if (whole || (type === 'RegularExpression' && (service !== undefined || method !== undefined))) {
    return { pathPattern: null, methodLength: 0 };
  }
  const quoted = (text: string | undefined): string | null => (text === undefined ? null : quoteRegex(text));
  return { pathPattern: grpcPathPattern(quoted(service), quoted(method)), methodLength: method?.length ?? 0 };
}

function certificateCondition(
  input: NonNullable<MatchInput['clientCertificate']>,
): MatchConditionsConfig['clientCertificate'] {
  return {
    subjectAltNames: (input.subjectAltNames ?? []).map(({ type, value }) => ({
      type: type!,
      value: type === 'RegularExpression' ? value : canonicalName(value),
    })),
    sha256: (input.sha256 ?? []).map((hash) => hash.replaceAll(':', '').toLowerCase()),
  };
}

/** A name as `ClientCertificate` has it: DNS names in lower case, addresses in one form, the rest as it is. */
function canonicalName(name: string): string {
  return name.includes('://') || name.includes('@') ? name : canonicalAddress(name.toLowerCase());
}
