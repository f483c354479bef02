// A node's way to the CA: CreateCertificate over gRPC, with a token or with the node's own certificate.
//
// One channel, made anew when the trusted roots or the node's certificate change. Control thread of a node.

import type { Client, ClientUnaryCall, Metadata, ServiceError } from '@grpc/grpc-js';
import { IdentityError, type IdentityErrorCode } from './errors.ts';
import {
  type CertificateRequest,
  type CertificateResponse,
  certificateServiceDefinition,
  GrpcStatus,
  IMPERSONATED_IDENTITY,
} from './istio-ca.ts';
import { splitCertificates } from './pem.ts';
import { serverNameOf } from './server-name.ts';
import { bundleToPem } from './trust-bundle.ts';
import type { TrustStore } from './trust-store.ts';

/** Longest wait for an answer of the CA. */
const DEADLINE_MS = 10_000;
/** Bounds of the channel's own waits between connection attempts; retries of requests are the store's. */
const RECONNECT_FIRST_MS = 250;
const RECONNECT_MAX_MS = 2_000;

/** Whoever signs requests. */
export interface CertificateSource {
  /**
   * A certificate for a request (PEM) that names the identity: PEM texts, the leaf first, then intermediates.
   * Rejects with an IdentityError.
   */
  request(csr: string, identity: string, lifetimeMs: number): Promise<string[]>;
}

/** A certificate chain and its key, as texts. */
export interface ClientCertificate {
  chainPem: string;
  keyPem: string;
}

/** How to reach the CA. */
export interface CertificateClientOptions {
  /** Host and port, such as `control.mesh.internal:15012`, or another target of gRPC. */
  address: string;
  /** What it is called in errors; absent: `address`. */
  shownAddress?: string;
  /** Name in the CA's certificate where it is not the host of the address. */
  serverName?: string;
  trust: TrustStore;
  /** A join token or service-account token, read at every request; null: none (any more). */
  token: () => Promise<string | null>;
  /** The node's own certificate; null: none yet. It is used whenever there is one, instead of the token. */
  certificate: () => ClientCertificate | null;
}

/** A client of the certificate service. */
export class CertificateClient implements CertificateSource {
  private readonly options: CertificateClientOptions;
  private client: Client | undefined;
  private madeFrom = '';

  /** Connects at the first request. */
  constructor(options: CertificateClientOptions) {
    this.options = options;
  }

  /** See CertificateSource. */
  async request(csr: string, identity: string, lifetimeMs: number): Promise<string[]> {
    const request: CertificateRequest = {
      csr,
      validityDuration: Math.ceil(lifetimeMs / 1000),
      metadata: { fields: { [IMPERSONATED_IDENTITY]: { stringValue: identity } } },
    };
    const certificate = this.options.certificate();
    try {
      return await this.send(request, certificate);
    } catch (error) {
      // A certificate of a root that the mesh has left behind: the token may do.
      if (certificate === null || !(error instanceof IdentityError) || error.code !== 'unauthenticated') throw error;
      return await this.send(request, null);
    }
  }

  /** Closes the channel. */
  close(): void {
    this.client?.close();
    this.client = undefined;
    this.madeFrom = '';
  }

  private async send(request: CertificateRequest, certificate: ClientCertificate | null): Promise<string[]> {
    const grpc = await import('@grpc/grpc-js');
    const metadata = new grpc.Metadata();
    if (certificate === null) {
      const token = await this.options.token();
      if (token !== null) metadata.set('authorization', `Bearer ${token}`);
    }
    const response = await this.call(await this.connect(certificate), request, metadata);
    const { certChain, rootCert } = response;
    // The last text holds the roots, unless the CA sends them apart; which are trusted is the bundle's decision.
    const texts = (rootCert?.caCert?.length ?? 0) > 0 || certChain.length < 2 ? certChain : certChain.slice(0, -1);
    const chain = texts.flatMap(splitCertificates);
    if (chain.length === 0) throw new IdentityError('untrusted-certificate', 'the CA answered without a certificate');
    return chain;
  }

  private async connect(certificate: ClientCertificate | null): Promise<Client> {
    const { address, serverName, trust } = this.options;
    const roots = bundleToPem(trust.current);
    const madeFrom = [roots, certificate?.chainPem].join('\n');
    if (this.client !== undefined && this.madeFrom === madeFrom) return this.client;
    const grpc = await import('@grpc/grpc-js');
    const ServiceClient = grpc.makeClientConstructor(await certificateServiceDefinition(), 'CertificateService');
    const buffer = (text: string | undefined): Buffer | null => (text === undefined ? null : Buffer.from(text));
    const { override, verify } = serverNameOf(address, serverName);
    const credentials = grpc.credentials.createSsl(
      Buffer.from(roots),
      buffer(certificate?.keyPem),
      buffer(certificate?.chainPem),
      verify,
    );
    this.client?.close();
    this.client = new ServiceClient(address, credentials, {
      'grpc.initial_reconnect_backoff_ms': RECONNECT_FIRST_MS,
      'grpc.max_reconnect_backoff_ms': RECONNECT_MAX_MS,
      // Channels are shared by default; another one's connection may have other credentials.
      'grpc.use_local_subchannel_pool': 1,
      'grpc.ssl_target_name_override': override,
    });
    this.madeFrom = madeFrom;
    return this.client;
  }

  private call(client: Client, request: CertificateRequest, metadata: Metadata): Promise<CertificateResponse> {
    type Method = (
      request: CertificateRequest,
      metadata: Metadata,
      options: { deadline: number },
      callback: (error: ServiceError | null, response?: CertificateResponse) => void,
    ) => ClientUnaryCall;
    const method = (client as unknown as { createCertificate: Method }).createCertificate;
    return new Promise((resolve, reject) => {
      method.call(client, request, metadata, { deadline: Date.now() + DEADLINE_MS }, (error, response) => {
        if (error === null) resolve(response!);
        else reject(refusalOf(error, this.options.shownAddress ?? this.options.address));
      });
    });
  }
}

const codeOfStatus: Partial<Record<number, IdentityErrorCode>> = {
  [GrpcStatus.INVALID_ARGUMENT]: 'csr-malformed',
  [GrpcStatus.PERMISSION_DENIED]: 'identity-not-allowed',
  [GrpcStatus.UNAUTHENTICATED]: 'unauthenticated',
  [GrpcStatus.RESOURCE_EXHAUSTED]: 'overloaded',
  [GrpcStatus.FAILED_PRECONDITION]: 'issuer-expired',
};

function refusalOf({ code, details }: ServiceError, address: string): IdentityError {
  const known = codeOfStatus[code];
  if (known !== undefined) return new IdentityError(known, `the CA refuses: ${details}`);
  // Words of the gRPC library that nothing follows here.
  const problem = details.replace(/\.? Resolution note: $/, '');
  const isForeign = /issuer certificate|self[- ]signed|ALTNAME|altnames/i.test(problem);
  return new IdentityError(
    'ca-unreachable',
    `no certificate from the CA at ${address}: ${problem}`,
    isForeign
      ? 'the address answers, and is not who this node expects: get the roots anew (portcullis mesh roots), or see that its name is in serverNames of the control plane, or in controlPlane.serverName here'
      : 'see that the control plane runs and that this node reaches it',
  );
}
