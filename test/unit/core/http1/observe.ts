// Runs the parsers on bytes and describes the outcome as plain values that tests can compare.
//
// Input is placed between guard bytes, and parsed under two different guards: an outcome that
// depends on bytes outside the given range shows as a difference and fails the test.

import assert from 'node:assert/strict';
import { ChunkedState, ChunkPhase, decodeChunked } from '../../../../core/http1/chunked.ts';
import { parseErrorName } from '../../../../core/http1/errors.ts';
import type { HeaderTable } from '../../../../core/http1/header-table.ts';
import { type ParserLimits, RequestHead, ResponseHead, TargetForm } from '../../../../core/http1/message.ts';
import { parseRequestHead } from '../../../../core/http1/request-parser.ts';
import { parseResponseHead } from '../../../../core/http1/response-parser.ts';

/** Limits that ordinary cases never reach. */
export const wideLimits: ParserLimits = { headBytesMax: 65_536, headerCountMax: 100, uriBytesMax: 8192 };

/** What a test may ask of a parsed head or body. `fields` holds "name: value" in order. */
export type Outcome = Record<string, string | number | boolean | string[]>;

const GUARD_BYTES = 37;
/** Guards that would continue, end or break whatever stands at the border. */
const GUARDS = ['\r\n\r\n', 'a', '0'];

const formNames = Object.keys(TargetForm);

/** Copies `input` between guard bytes; it starts at GUARD_BYTES. */
function guarded(input: Uint8Array, guard: string): Uint8Array {
  const memory = new Uint8Array(input.length + 2 * GUARD_BYTES);
  for (let i = 0; i < memory.length; i++) memory[i] = guard.charCodeAt(i % guard.length);
  // The guard pattern restarts after the input, so that its first byte is the one next to it.
  for (let i = 0; i < GUARD_BYTES; i++) memory[GUARD_BYTES + input.length + i] = guard.charCodeAt(i % guard.length);
  memory.set(input, GUARD_BYTES);
  return memory;
}

function text(memory: Uint8Array, offset: number, length: number): string {
  return Buffer.from(memory.subarray(offset, offset + length)).toString('latin1');
}

/** Fields of a table as "name: value". */
export function fieldTexts(memory: Uint8Array, table: HeaderTable): string[] {
  const fields: string[] = [];
  for (let i = 0; i < table.count; i++) {
    const name = text(memory, table.nameOffset(i), table.nameLength(i));
    fields.push(`${name}: ${text(memory, table.valueOffset(i), table.valueLength(i))}`);
  }
  return fields;
}

/** Runs `observe` under every guard and insists on one outcome. */
function underGuards(input: Uint8Array, observe: (memory: Uint8Array) => Outcome): Outcome {
  const outcomes = GUARDS.map((guard) => {
    const memory = guarded(input, guard);
    const outcome = observe(memory);
    const around = Buffer.concat([memory.subarray(0, GUARD_BYTES), memory.subarray(GUARD_BYTES + input.length)]);
    const expected = guarded(input, guard);
    assert.deepEqual(
      around,
      Buffer.concat([expected.subarray(0, GUARD_BYTES), expected.subarray(GUARD_BYTES + input.length)]),
      'bytes outside the range were written',
    );
    return outcome;
  });
  for (const outcome of outcomes) assert.deepEqual(outcome, outcomes[0], 'bytes outside the range were read');
  return outcomes[0];
}

function failure(result: number): Outcome {
  return result === 0 ? { more: true } : { error: parseErrorName(-result) };
}

/** Outcome of one parseRequestHead call on exactly `input`. */
export function observeRequest(input: Uint8Array, limits: ParserLimits): Outcome {
  return underGuards(input, (memory) => {
    const head = new RequestHead();
    const result = parseRequestHead(memory, GUARD_BYTES, input.length, limits, head);
    if (result <= 0) return failure(result);
    assert.equal(head.endOffset, GUARD_BYTES + result);
    const upgrade = head.upgradeField;
    return {
      bytes: result,
      method: text(memory, head.methodOffset, head.methodLength),
      methodNumber: head.method,
      target: text(memory, head.targetOffset, head.targetLength),
      form: formNames[head.targetForm],
      path: text(memory, head.pathOffset, head.pathLength),
      pathOnly: text(memory, head.pathOffset, head.pathOnlyLength),
      authority: text(memory, head.authorityOffset, head.authorityLength),
      host: text(memory, head.authorityOffset, head.hostLength),
      version: `1.${head.versionMinor}`,
      contentLength: head.contentLength,
      chunked: head.chunked,
      keepAlive: head.keepAlive,
      expectContinue: head.expectContinue,
      upgrade:
        upgrade < 0 ? 'none' : text(memory, head.headers.valueOffset(upgrade), head.headers.valueLength(upgrade)),
      connectionNamesFields: head.connectionNamesFields,
      hopByHop: head.hasHopByHop,
      fields: fieldTexts(memory, head.headers),
    };
  });
}

/** Outcome of one parseResponseHead call on exactly `input`. */
export function observeResponse(input: Uint8Array, limits: ParserLimits): Outcome {
  return underGuards(input, (memory) => {
    const head = new ResponseHead();
    const result = parseResponseHead(memory, GUARD_BYTES, input.length, limits, head);
    if (result <= 0) return failure(result);
    assert.equal(head.endOffset, GUARD_BYTES + result);
    const upgrade = head.upgradeField;
    return {
      bytes: result,
      status: head.status,
      reason: text(memory, head.reasonOffset, head.reasonLength),
      version: `1.${head.versionMinor}`,
      fieldsAt: head.fieldsOffset - GUARD_BYTES,
      contentLength: head.contentLength,
      chunked: head.chunked,
      keepAlive: head.keepAlive,
      upgrade:
        upgrade < 0 ? 'none' : text(memory, head.headers.valueOffset(upgrade), head.headers.valueLength(upgrade)),
      connectionNamesFields: head.connectionNamesFields,
      hopByHop: head.hasHopByHop,
      fields: fieldTexts(memory, head.headers),
    };
  });
}

/**
 * Outcome of decoding `input` as a chunked body that arrives in `pieces` (lengths that add up to it).
 * Plays the caller: keeps what the decoder has not consumed and appends the next piece.
 */
export function observeChunked(input: Uint8Array, pieces: readonly number[], maxTrailerBytes: number): Outcome {
  return underGuards(input, () => {
    const state = new ChunkedState();
    state.reset();
    const body: Buffer[] = [];
    let kept: Uint8Array = new Uint8Array(0);
    let at = 0;
    for (const size of pieces) {
      const piece = Buffer.concat([kept, input.subarray(at, at + size)]);
      at += size;
      const memory = guarded(piece, GUARDS[pieces.length % GUARDS.length]);
      const result = decodeChunked(memory, GUARD_BYTES, piece.length, state, maxTrailerBytes);
      if (result < 0) return failure(result);
      body.push(Buffer.from(memory.subarray(state.payloadOffset, state.payloadOffset + state.payloadLength)));
      kept = memory.slice(GUARD_BYTES + state.consumed, GUARD_BYTES + piece.length);
      if (state.phase === ChunkPhase.DONE) {
        const rest = Buffer.concat([kept, input.subarray(at)]).toString('latin1');
        return {
          body: Buffer.concat(body).toString('latin1'),
          rest,
          fields: fieldTexts(memory, state.trailers),
        };
      }
      assert.equal(kept.length > 0, state.needTrailers, 'only trailers are left with the caller');
    }
    return { more: true };
  });
}
