// Where a rule's requests are mirrored to, prepared for the packet path.
// Made once per snapshot and policy. Hot module: no allocation per request.

import type { MirrorSettings } from '../workers/policies.ts';
import type { Runtime } from './runtime.ts';

/** One more than the highest number that a share is drawn from. */
const DRAWS = 2 ** 31;

const UNKNOWN = -2;

export class MirrorTarget {
  readonly timeoutMs: number;
  readonly bodyBytesMax: number;
  /** Mirrored are requests that draw a number below this. */
  private readonly drawsBelow: number;
  private readonly name: string;
  private index = UNKNOWN;

  constructor(settings: MirrorSettings) {
    this.timeoutMs = settings.timeoutMs;
    this.bodyBytesMax = settings.bodyBytesMax;
    this.drawsBelow = Math.round(settings.share * DRAWS);
    this.name = settings.backend;
  }

  /** Whether a request that draws these 31 bits is mirrored. */
  takes(bits: number): boolean {
    return bits < this.drawsBelow;
  }

  /** Index of the backend in the snapshot that the target belongs to; -1: there is none. Looked for once. */
  backend(runtime: Runtime): number {
    if (this.index === UNKNOWN) this.index = this.find(runtime);
    return this.index;
  }

  private find(runtime: Runtime): number {
    const { backends } = runtime;
    for (let i = 0; i < backends.length; i++) if (backends[i].settings.name === this.name) return i;
    return -1;
  }
}
