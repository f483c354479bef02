// DER through node-forge: makers for the few forms in certificates and requests, and a strict reader.
//
// node-forge reads more than DER; what it read is written again and compared, so that only the one valid
// encoding of anything passes, and nothing can hide in another. Control threads and minting threads.
// Spec: X.690 (DER), RFC 5280 §4.1.2.5 (times).

import type forge from 'node-forge';
// Not all of node-forge, which has a TLS of its own, and more: that would be 40 modules and 1 MiB for every node proxy.
import asn1 from 'node-forge/lib/asn1.js';

const { Class, Type } = asn1;

/** One element: a node of node-forge's. Contents are strings of bytes. */
export type Asn1 = forge.asn1.Asn1;

/** A SEQUENCE. */
export function sequence(...parts: Asn1[]): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.SEQUENCE, true, parts);
}

/** A SET of one element. */
export function setOf(part: Asn1): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.SET, true, [part]);
}

/** An OBJECT IDENTIFIER from its dotted form. */
export function oid(dotted: string): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.OID, false, asn1.oidToDer(dotted).getBytes());
}

/** A non-negative INTEGER from its big-endian bytes. */
export function integer(bytes: Uint8Array): Asn1 {
  // node-forge drops zeros in front that mean nothing; this one keeps the number from being negative.
  return asn1.create(Class.UNIVERSAL, Type.INTEGER, false, `\0${binary(bytes)}`);
}

/** BOOLEAN true; false is the default wherever it is used here, and defaults are left out. */
export function booleanTrue(): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.BOOLEAN, false, '\xff');
}

/** NULL. */
export function nothing(): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.NULL, false, '');
}

/** An OCTET STRING. */
export function octetString(bytes: Uint8Array): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.OCTETSTRING, false, binary(bytes));
}

/** A BIT STRING; `unusedBits` of its last byte are padding. */
export function bitString(bytes: Uint8Array, unusedBits = 0): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.BITSTRING, false, String.fromCharCode(unusedBits) + binary(bytes));
}

/** A UTF8String. */
export function utf8String(text: string): Asn1 {
  return asn1.create(Class.UNIVERSAL, Type.UTF8, false, binary(Buffer.from(text)));
}

/** An element with a context-specific tag around others (EXPLICIT, or an IMPLICIT constructed one). */
export function context(tag: number, ...parts: Asn1[]): Asn1 {
  return asn1.create(Class.CONTEXT_SPECIFIC, tag, true, parts);
}

/** A context-specific primitive element (IMPLICIT). */
export function contextPrimitive(tag: number, bytes: Uint8Array): Asn1 {
  return asn1.create(Class.CONTEXT_SPECIFIC, tag, false, binary(bytes));
}

/** A point in time, to the second: UTCTime until 2049, GeneralizedTime after (RFC 5280 §4.1.2.5). */
export function time(timeMs: number): Asn1 {
  const digits = new Date(timeMs).toISOString().replace(/[-:T]/g, '').slice(0, 14);
  return Number(digits.slice(0, 4)) < 2050
    ? asn1.create(Class.UNIVERSAL, Type.UTCTIME, false, `${digits.slice(2)}Z`)
    : asn1.create(Class.UNIVERSAL, Type.GENERALIZEDTIME, false, `${digits}Z`);
}

/** The DER of an element. */
export function toDer(element: Asn1): Buffer {
  return Buffer.from(asn1.toDer(element).getBytes(), 'latin1');
}

/** Reads exactly one element that is valid DER. Throws an Error for everything else. */
export function fromDer(bytes: Uint8Array): Asn1 {
  const element = asn1.fromDer(binary(bytes), readOptions as unknown as boolean);
  if (!toDer(element).equals(bytes)) throw new Error('not DER');
  return element;
}

// The types of node-forge 1.3 know only the boolean form. Contents of BIT STRINGs are not guessed at.
const readOptions = { strict: true, parseAllBytes: true, decodeBitStrings: false };

/** The parts of a SEQUENCE. Throws an Error for every other element. */
export function partsOfSequence(element: Asn1 | undefined): Asn1[] {
  return parts(element, Class.UNIVERSAL, Type.SEQUENCE);
}

/** The parts of a SET. Throws an Error for every other element. */
export function partsOfSet(element: Asn1 | undefined): Asn1[] {
  return parts(element, Class.UNIVERSAL, Type.SET);
}

/** The parts of a constructed context-specific element. Throws an Error for every other element. */
export function partsOfContext(element: Asn1 | undefined, tag: number): Asn1[] {
  return parts(element, Class.CONTEXT_SPECIFIC, tag);
}

/** The dotted form of an OBJECT IDENTIFIER. Throws an Error for every other element. */
export function oidOf(element: Asn1 | undefined): string {
  return asn1.derToOid(content(element, Class.UNIVERSAL, Type.OID));
}

/** The bytes of an OCTET STRING. Throws an Error for every other element. */
export function octetsOf(element: Asn1 | undefined): Buffer {
  return Buffer.from(content(element, Class.UNIVERSAL, Type.OCTETSTRING), 'latin1');
}

/** The bytes of a BIT STRING of whole bytes. Throws an Error for every other element. */
export function bitsOf(element: Asn1 | undefined): Buffer {
  const bytes = content(element, Class.UNIVERSAL, Type.BITSTRING);
  if (bytes.length === 0 || bytes[0] !== '\0') throw new Error('not a BIT STRING of whole bytes');
  return Buffer.from(bytes.slice(1), 'latin1');
}

/** Whether an element is BOOLEAN true. Throws an Error for other types, and for false, which DER leaves out. */
export function isTrue(element: Asn1 | undefined): boolean {
  if (content(element, Class.UNIVERSAL, Type.BOOLEAN) !== '\xff') throw new Error('not BOOLEAN true');
  return true;
}

/** The bytes of an INTEGER. Throws an Error for every other element. */
export function integerOf(element: Asn1 | undefined): Buffer {
  return Buffer.from(content(element, Class.UNIVERSAL, Type.INTEGER), 'latin1');
}

/** Whether an element has a context-specific tag. */
export function isContext(element: Asn1 | undefined, tag: number): boolean {
  return element !== undefined && element.tagClass === Class.CONTEXT_SPECIFIC && element.type === tag;
}

/** The bytes of a primitive element of any type. Throws an Error for a constructed one. */
export function bytesOf(element: Asn1 | undefined): Buffer {
  if (typeof element?.value !== 'string') throw new Error('not a primitive element');
  return Buffer.from(element.value, 'latin1');
}

function parts(element: Asn1 | undefined, tagClass: number, type: number): Asn1[] {
  if (
    element === undefined ||
    element.tagClass !== tagClass ||
    element.type !== type ||
    !Array.isArray(element.value)
  ) {
    throw new Error('an element is of another type than expected');
  }
  return element.value;
}

function content(element: Asn1 | undefined, tagClass: number, type: number): string {
  if (element === undefined || element.tagClass !== tagClass || element.type !== type) {
    throw new Error('an element is of another type than expected');
  }
  if (typeof element.value !== 'string') throw new Error('a primitive element is constructed');
  return element.value;
}

function binary(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}
