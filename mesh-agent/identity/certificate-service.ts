// The gRPC service that signs certificates: istio.v1.auth.IstioCertificateService.
//
//   who are you? (attestors) -> for whom? (request metadata, or the request's SAN) -> may you? (authorise)
//   -> count the use of a token -> sign -> chain and roots
//
// A refusal is an error with a code and one clause of cause, logged with the caller's name. Control thread.

import { X509Certificate } from 'node:crypto';
import type { Server, ServerUnaryCall, sendUnaryData, UntypedServiceImplementation } from '@grpc/grpc-js';
import type { Log } from '../../core/workers/log.ts';
import { type Attestor, authenticate, authorise, type Caller, type Evidence, type RunsOnNode } from './attestation.ts';
import type { MeshAuthority } from './authority.ts';
import { asIdentityError, type IdentityError, type IdentityErrorCode } from './errors.ts';
import {
  type CertificateRequest,
  type CertificateResponse,
  certificateServiceDefinition,
  GrpcStatus,
  IMPERSONATED_IDENTITY,
} from './istio-ca.ts';
import { bundleToPem } from './trust-bundle.ts';

/** What the service needs. */
export interface CertificateServiceOptions {
  authority: MeshAuthority;
  /** Tried in this order. */
  attestors: readonly Attestor[];
  /** Decides whether a node proxy may have a workload's certificate. */
  runsOnNode: RunsOnNode;
  /** Identities that nobody gets a certificate for; asked at every request. Absent: there are none. */
  isBlocked?: (identity: string) => boolean;
  log: Log;
}

/** What the service has done, for metrics. */
export interface CertificateServiceCounts {
  issued: number;
  /** Refusals by code. */
  refused: Partial<Record<IdentityErrorCode, number>>;
}

/** Refusals that are logged in one minute; a caller can make any number of them. */
const LOGGED_PER_MINUTE = 30;
const MINUTE_MS = 60_000;

const statusOfCode: Partial<Record<IdentityErrorCode, number>> = {
  'spiffe-id': GrpcStatus.INVALID_ARGUMENT,
  'csr-oversized': GrpcStatus.INVALID_ARGUMENT,
  'csr-malformed': GrpcStatus.INVALID_ARGUMENT,
  'csr-signature': GrpcStatus.INVALID_ARGUMENT,
  'csr-key-type': GrpcStatus.INVALID_ARGUMENT,
  'csr-subject': GrpcStatus.INVALID_ARGUMENT,
  'csr-names': GrpcStatus.INVALID_ARGUMENT,
  'csr-extensions': GrpcStatus.INVALID_ARGUMENT,
  unauthenticated: GrpcStatus.UNAUTHENTICATED,
  'identity-not-allowed': GrpcStatus.PERMISSION_DENIED,
  'issuer-expired': GrpcStatus.FAILED_PRECONDITION,
  overloaded: GrpcStatus.RESOURCE_EXHAUSTED,
  'ca-unreachable': GrpcStatus.UNAVAILABLE,
};

/** Adds the service to a gRPC server; resolves to its counts, which go on counting. */
export async function addCertificateService(
  server: Pick<Server, 'addService'>,
  options: CertificateServiceOptions,
): Promise<CertificateServiceCounts> {
  const service = new CertificateService(options);
  const implementation: UntypedServiceImplementation = {
    CreateCertificate: (
      call: ServerUnaryCall<CertificateRequest, CertificateResponse>,
      callback: sendUnaryData<CertificateResponse>,
    ) => {
      service.create(call.request, evidenceOfCall(call)).then(
        (response) => callback(null, response),
        (error: IdentityError) => {
          const code = statusOfCode[error.code] ?? GrpcStatus.INTERNAL;
          // What is wrong inside of the control plane is in its log, and nobody else's business.
          const details = code === GrpcStatus.INTERNAL ? 'internal error' : error.message;
          callback({ code, details });
        },
      );
    },
  };
  server.addService(await certificateServiceDefinition(), implementation);
  return service.counts;
}

/** The evidence of a gRPC call: its metadata, and the client certificate that TLS has verified. */
export function evidenceOfCall(call: Pick<ServerUnaryCall<unknown, unknown>, 'metadata' | 'getAuthContext'>): Evidence {
  // Absent unless TLS has verified the certificate against the trust bundle.
  const raw = call.getAuthContext().sslPeerCertificate?.raw;
  return {
    header: (name) => call.metadata.get(name)[0]?.toString(),
    peerCertificate: raw === undefined ? undefined : new X509Certificate(raw),
  };
}

class CertificateService {
  readonly counts: CertificateServiceCounts = { issued: 0, refused: {} };
  private readonly options: CertificateServiceOptions;
  private minuteMs = 0;
  private logged = 0;

  constructor(options: CertificateServiceOptions) {
    this.options = options;
  }

  /** Answers a request; rejects with an IdentityError that is counted and logged. */
  async create(request: CertificateRequest, evidence: Evidence): Promise<CertificateResponse> {
    let caller: Caller | null = null;
    try {
      caller = await authenticate(this.options.attestors, evidence);
      return await this.sign(request, caller);
    } catch (error) {
      const refusal = asIdentityError(error);
      this.refused(refusal, caller);
      throw refusal;
    }
  }

  private async sign(request: CertificateRequest, caller: Caller): Promise<CertificateResponse> {
    const { authority, runsOnNode, isBlocked, log } = this.options;
    const identity = await this.wanted(request, caller);
    await authorise(caller, identity, authority.trustDomain, runsOnNode, isBlocked);
    const giveBack = await caller.claim?.();
    try {
      const { chain, bundle, notAfterMs } = await authority.issue(
        request.csr,
        identity,
        Math.max(0, request.validityDuration) * 1000,
      );
      this.counts.issued++;
      log('debug', 'a certificate was signed', {
        identity,
        caller: caller.name,
        expires: new Date(notAfterMs).toISOString(),
      });
      // All roots in the last text: what every released client of this protocol understands.
      return { certChain: [...chain, bundleToPem(bundle)] };
    } catch (error) {
      await giveBack?.();
      throw error;
    }
  }

  /** The identity that is asked for: impersonated, or named by the request, or the only one of the caller. */
  private async wanted({ csr, metadata }: CertificateRequest, caller: Caller): Promise<string> {
    const impersonated = metadata?.fields?.[IMPERSONATED_IDENTITY]?.stringValue ?? '';
    if (impersonated !== '') return impersonated;
    return (await this.options.authority.inspect(csr)) ?? caller.identities[0] ?? '';
  }

  private refused({ code, message, advice }: IdentityError, caller: Caller | null): void {
    const { refused } = this.counts;
    refused[code] = (refused[code] ?? 0) + 1;
    const nowMs = performance.now();
    if (nowMs >= this.minuteMs + MINUTE_MS) {
      this.minuteMs = nowMs;
      this.logged = 0;
    }
    if (++this.logged > LOGGED_PER_MINUTE) return;
    this.options.log('warn', 'a certificate request was refused', {
      code,
      cause: message,
      caller: caller?.name,
      advice: advice === '' ? undefined : advice,
      note: this.logged === LOGGED_PER_MINUTE ? 'further refusals of this minute are only counted' : undefined,
    });
  }
}
