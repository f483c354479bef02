// The messages of the control plane's protocols as objects, and their encoding.
//
// Control threads. The .proto files of mesh-agent/proto are read when they are first needed, so that
// nothing else pays for them. Field names are in camel case, enums are texts, bytes are Buffers; after
// decoding every field is present. Spec: xDS (envoy.service.discovery.v3), istio.workload, istio.security.

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import type { MessageTypeDefinition } from '@grpc/proto-loader';

/** Type of the resources that are workloads and services. */
export const ADDRESS_TYPE = 'type.googleapis.com/istio.workload.Address';
/** Type of the resources that are authorisation policies. */
export const AUTHORIZATION_TYPE = 'type.googleapis.com/istio.security.Authorization';

/** Type of the resource that is the trust bundle; ours. */
export const TRUST_TYPE = 'type.googleapis.com/portcullis.mesh.v1.TrustBundle';

/** Node metadata in which a proxy says which roots its certificates lead to: ids, separated by commas. */
export const ISSUERS_METADATA = 'PORTCULLIS_ISSUERS';

/** Names of our extensions of public messages. */
export const Extension = {
  CONFIGURATION: 'portcullis.dev/configuration',
  WORKLOAD: 'portcullis.dev/workload',
  POLICY: 'portcullis.dev/policy',
} as const;

/** Codes of google.rpc.Code and gRPC that are used here. */
export const RpcCode = {
  INVALID_ARGUMENT: 3,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  UNAVAILABLE: 14,
  UNAUTHENTICATED: 16,
} as const;

/** google.protobuf.Any; the package that encodes it brings the definition along, with this spelling. */
export interface AnyMessage {
  type_url: string;
  value: Uint8Array;
}

/** google.rpc.Status. */
export interface StatusMessage {
  code: number;
  message: string;
  details: AnyMessage[];
}

/** envoy.service.discovery.v3.Resource. */
export interface ResourceMessage {
  version: string;
  resource: AnyMessage | null;
  name: string;
  aliases: string[];
}

/** A value of google.protobuf.Struct, as far as node metadata uses it. */
export interface StructMessage {
  fields: Record<string, { stringValue?: string }>;
}

/** envoy.config.core.v3.Node. */
export interface NodeMessage {
  id: string;
  cluster?: string;
  metadata: StructMessage | null;
  userAgentName?: string;
  userAgentVersion?: string;
}

/** envoy.service.discovery.v3.DeltaDiscoveryRequest. */
export interface DeltaRequest {
  node: NodeMessage | null;
  typeUrl: string;
  resourceNamesSubscribe: string[];
  resourceNamesUnsubscribe: string[];
  initialResourceVersions: Record<string, string>;
  responseNonce: string;
  errorDetail: StatusMessage | null;
}

/** envoy.service.discovery.v3.DeltaDiscoveryResponse. */
export interface DeltaResponse {
  systemVersionInfo: string;
  resources: ResourceMessage[];
  typeUrl: string;
  nonce: string;
  removedResources: string[];
}

/** A message that can be encoded and decoded; `decode` throws on bytes that are none. */
export interface Codec<T extends object> {
  encode(message: T): Buffer;
  decode(bytes: Uint8Array): T;
}

const options = { longs: Number, enums: String, defaults: true, arrays: true, objects: true, oneofs: true };

let definitions: Record<string, unknown> | undefined;

function definition(name: string): unknown {
  if (definitions === undefined) {
    // Synchronous on purpose: encoding is asked for by code that cannot wait.
    const { loadSync } = createRequire(import.meta.url)('@grpc/proto-loader') as typeof import('@grpc/proto-loader');
    const includeDirs = [fileURLToPath(new URL('../proto', import.meta.url))];
    definitions = loadSync(['discovery.proto', 'authorization.proto', 'mesh.proto'], { ...options, includeDirs });
  }
  return definitions[name];
}

/** The codec of a message by its full name, such as `istio.workload.Address`. */
export function codec<T extends object>(name: string): Codec<T> {
  let message: MessageTypeDefinition<T, T> | undefined;
  const loaded = (): MessageTypeDefinition<T, T> => (message ??= definition(name) as MessageTypeDefinition<T, T>);
  return {
    encode: (object) => loaded().serialize(object),
    decode: (bytes) => loaded().deserialize(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)),
  };
}

/** Path of that method in gRPC. */
export const DELTA_PATH = '/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources';

export const requestCodec: Codec<DeltaRequest> = codec('envoy.service.discovery.v3.DeltaDiscoveryRequest');
export const responseCodec: Codec<DeltaResponse> = codec('envoy.service.discovery.v3.DeltaDiscoveryResponse');
export const resourceCodec: Codec<ResourceMessage> = codec('envoy.service.discovery.v3.Resource');
export const refusedCodec: Codec<{ names: string[] }> = codec('portcullis.mesh.v1.Refused');
export const trustCodec: Codec<{ json: Uint8Array }> = codec('portcullis.mesh.v1.TrustBundle');

/** Type of `Refused` in the details of a status. */
export const REFUSED_TYPE = 'type.googleapis.com/portcullis.mesh.v1.Refused';

/**
 * An encoded message with one field of length-delimited type: what stands for an item of a repeated field
 * in its message, so that an item is encoded once for all messages it is in.
 */
export function lengthDelimited(fieldNumber: number, bytes: Uint8Array): Buffer {
  const head: number[] = [];
  for (let number of [(fieldNumber << 3) | 2, bytes.length]) {
    while (number > 127) {
      head.push((number & 127) | 128);
      number >>>= 7;
    }
    head.push(number);
  }
  return Buffer.concat([Uint8Array.from(head), bytes]);
}
