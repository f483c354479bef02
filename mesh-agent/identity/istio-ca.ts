// The certificate protocol's messages and methods, from the .proto file, for server and client.
//
// Loaded when first needed: the gRPC libraries are no business of a process without a mesh. Control threads.

import { fileURLToPath } from 'node:url';
import type { ServiceDefinition } from '@grpc/grpc-js';

/** Full name of the service. */
const CERTIFICATE_SERVICE = 'istio.v1.auth.IstioCertificateService';

/** Key in a request's metadata of the workload that a node proxy asks for, as istiod and ztunnel have it. */
export const IMPERSONATED_IDENTITY = 'ImpersonatedIdentity';

/** A request, as the library decodes it. */
export interface CertificateRequest {
  /** PEM. */
  csr: string;
  /** Wanted lifetime in seconds; 0: the CA's default. */
  validityDuration: number;
  metadata?: { fields?: Record<string, { kind?: string; stringValue?: string }> } | null;
}

/** A response, as the library decodes it. */
export interface CertificateResponse {
  /** PEM texts; see the .proto file for what the last one is. */
  certChain: string[];
  rootCert?: { caCert: string[] } | null;
}

let definition: Promise<ServiceDefinition> | undefined;

/** The service's definition, for `addService` and `makeClientConstructor`. */
export function certificateServiceDefinition(): Promise<ServiceDefinition> {
  definition ??= loadDefinition();
  return definition;
}

/** Status codes of gRPC in use here. */
export const GrpcStatus = {
  OK: 0,
  INVALID_ARGUMENT: 3,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  UNAUTHENTICATED: 16,
} as const;

async function loadDefinition(): Promise<ServiceDefinition> {
  const { load } = await import('@grpc/proto-loader');
  const path = fileURLToPath(new URL('../proto/istio-ca.proto', import.meta.url));
  const all = await load(path, { longs: Number, defaults: true, oneofs: true });
  return all[CERTIFICATE_SERVICE] as ServiceDefinition;
}
