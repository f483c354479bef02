// Reads a recording of requests from a file, line by line, so that its size does not matter.
//
// Runs in the process of `portcullis check`. The file may have been edited or cut: a line that is no
// request ends the reading with one sentence that names it.

import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import type { RecordedRequest } from '../../core/telemetry/recorder-reader.ts';
import { RECORDING_VERSION, type RecordingHeader } from './recordings.ts';

/** An open recording. */
export interface Recording {
  header: RecordingHeader;
  /** Ends with an ExitError at a line that is no request. */
  requests: AsyncGenerator<RecordedRequest>;
}

/** Opens a recording; throws an ExitError with one sentence when it is none. */
export async function openRecording(file: string): Promise<Recording> {
  const lines = linesOf(file);
  const first = await lines.next();
  const header = first.done === true ? undefined : parse(first.value);
  if (!isMapping(header) || typeof header.portcullisRecording !== 'number') {
    throw refuse(
      `${file} is no recording of requests: its first line is not the one that \`portcullis recorded\` writes.`,
    );
  }
  if (header.portcullisRecording !== RECORDING_VERSION) {
    throw refuse(
      `${file} is a recording of version ${header.portcullisRecording}; this Portcullis reads version ${RECORDING_VERSION}.`,
    );
  }
  const { hashedHeaders } = header;
  return {
    header: { ...(header as unknown as RecordingHeader), hashedHeaders: isTexts(hashedHeaders) ? hashedHeaders : [] },
    requests: requestsOf(file, lines),
  };
}

async function* requestsOf(file: string, lines: AsyncGenerator<string>): AsyncGenerator<RecordedRequest> {
  let number = 1;
  for await (const text of lines) {
    number++;
    if (text === '') continue;
    const problem = problemOf(parse(text));
    if (problem !== undefined) throw refuse(`${file}:${number}: not a recorded request: ${problem}.`);
    yield parse(text) as RecordedRequest;
  }
}

async function* linesOf(file: string): AsyncGenerator<string> {
  const input = createReadStream(file, 'utf8');
  // An error of the stream does not reach the interface over it.
  const failed = new Promise<never>((_resolve, reject) => input.once('error', reject));
  failed.catch(() => {});
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })[Symbol.asyncIterator]();
  try {
    for (;;) {
      const next = await Promise.race([lines.next(), failed]);
      if (next.done === true) {
        // The interface also ends when the stream fails.
        if (input.errored !== null) throw input.errored;
        return;
      }
      yield next.value;
    }
  } catch (error) {
    if (error instanceof ExitError || (error as NodeJS.ErrnoException).code === undefined) throw error;
    throw refuse(`${file} cannot be read: ${(error as Error).message}.`);
  } finally {
    input.destroy();
  }
}

/** What is missing or wrong in a line, or undefined. */
function problemOf(value: unknown): string | undefined {
  if (!isMapping(value)) return 'it is no JSON mapping';
  for (const key of ['listener', 'method', 'host', 'path', 'client', 'route', 'backend']) {
    const text = value[key];
    if (typeof text !== 'string') return `"${key}" is not text`;
    if (/[\r\n\0]/.test(text)) return `"${key}" has a line end in it`;
  }
  if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(value.method as string)) return '"method" is no token';
  if (/[^\x21-\x7e]/.test(value.path as string) || value.path === '') return '"path" is no request target';
  const { headers, backends, certificate } = value;
  const named =
    isMapping(certificate) && typeof certificate.sha256 === 'string' && isTexts(certificate.subjectAltNames);
  if (certificate !== null && !named) return '"certificate" is neither null nor a fingerprint with names';
  const isField = (field: unknown): boolean =>
    isTexts(field) && field.length === 2 && !field.some((text) => /[\r\n\0]/.test(text));
  if (!Array.isArray(headers) || !headers.every(isField)) return '"headers" is no list of names and values';
  if (!isMapping(backends) || !Object.values(backends).every((weight) => typeof weight === 'number')) {
    return '"backends" has no weights';
  }
  return undefined;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'string');
}

function refuse(sentence: string): ExitError {
  return new ExitError(ExitCode.USAGE, sentence);
}
