// The two messages of gRPC's health protocol, in the frames of gRPC.
//
// A message has a single field each, so that they are written and read by hand.
// Control thread. Spec: grpc.health.v1.Health, gRPC over HTTP/2 (Length-Prefixed-Message), protobuf encoding.

/** Path of the method. */
export const HEALTH_CHECK_PATH = '/grpc.health.v1.Health/Check';

/** ServingStatus by number. */
const servingStatus = ['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN'];

const FRAME_HEAD_BYTES = 5;
const WIRE_VARINT = 0;
const WIRE_FIXED64 = 1;
const WIRE_BYTES = 2;
const WIRE_FIXED32 = 5;

/** HealthCheckRequest{service = 1} as a framed message. */
export function healthRequest(service: string): Uint8Array {
  const name = Buffer.from(service);
  // A proto3 field with its default value is left out.
  const message =
    name.length === 0 ? name : Buffer.concat([Buffer.of((1 << 3) | WIRE_BYTES), varint(name.length), name]);
  const head = Buffer.alloc(FRAME_HEAD_BYTES);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

/** Name of HealthCheckResponse.status = 1 in a framed message; undefined when the bytes are no such message. */
export function readHealthResponse(frame: Uint8Array): string | undefined {
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.byteLength);
  // Compression was not offered.
  if (bytes.length < FRAME_HEAD_BYTES || bytes[0] !== 0) return undefined;
  if (bytes.length !== FRAME_HEAD_BYTES + bytes.readUInt32BE(1)) return undefined;
  let status = 0;
  let at = FRAME_HEAD_BYTES;
  while (at < bytes.length) {
    const tag = readVarint(bytes, at);
    if (tag === undefined) return undefined;
    at = tag.end;
    const wire = tag.value & 7;
    const number = readVarint(bytes, at);
    if (wire === WIRE_VARINT) {
      if (number === undefined) return undefined;
      if (tag.value >>> 3 === 1) status = number.value;
      at = number.end;
    } else if (wire === WIRE_BYTES) {
      if (number === undefined) return undefined;
      at = number.end + number.value;
    } else if (wire === WIRE_FIXED64 || wire === WIRE_FIXED32) {
      at += wire === WIRE_FIXED64 ? 8 : 4;
    } else {
      return undefined;
    }
  }
  return at === bytes.length ? (servingStatus[status] ?? `status ${status}`) : undefined;
}

function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 127; rest >>>= 7) bytes.push((rest & 127) | 128);
  bytes.push(rest);
  return Uint8Array.from(bytes);
}

/** A varint of up to four bytes: no number of these messages is larger. */
function readVarint(bytes: Uint8Array, from: number): { value: number; end: number } | undefined {
  let value = 0;
  for (let i = 0; i < 4; i++) {
    const byte = bytes[from + i];
    if (byte === undefined) return undefined;
    value |= (byte & 127) << (7 * i);
    if (byte < 128) return { value, end: from + i + 1 };
  }
  return undefined;
}
