// Session ticket keys: made here, the same for all workers, and renewed often enough that a stolen one
// opens little (RFC 5077 §5.5). They live in memory only, across reloads and not across restarts.
// Owned by the control thread.

import { randomBytes } from 'node:crypto';
import { TICKET_KEY_BYTES } from '../../core/tls/ticket-keys.ts';

/** Time between two rotations. A ticket lasts two hours, so the key of before opens every one. */
export const ROTATION_INTERVAL_MS = 12 * 3_600_000;

/** Keys that open tickets, the newest included. */
const KEYS_KEPT = 3;

/** The ticket keys of the process. */
export class TicketKeyRotation {
  /** Newest first. */
  keys: readonly Uint8Array[] = [newKey()];
  private readonly onRotate: () => void;
  private readonly intervalMs: number;
  private timer: NodeJS.Timeout | undefined;

  /** `onRotate` is called when `keys` has changed. */
  constructor(onRotate: () => void, intervalMs = ROTATION_INTERVAL_MS) {
    this.onRotate = onRotate;
    this.intervalMs = intervalMs;
  }

  /** Begins to rotate; calling it again changes nothing. */
  start(): void {
    this.timer ??= setInterval(() => this.rotate(), this.intervalMs).unref();
  }

  /** Stops rotating. */
  stop(): void {
    clearInterval(this.timer);
    this.timer = undefined;
  }

  private rotate(): void {
    this.keys = [newKey(), ...this.keys].slice(0, KEYS_KEPT);
    this.onRotate();
  }
}

/** In memory of its own: workers get copies, and a pool would lend the same pages to other buffers. */
function newKey(): Uint8Array {
  return new Uint8Array(randomBytes(TICKET_KEY_BYTES));
}
