// Exit codes of the `portcullis` command. Documented in docs/operations.md; never renumber.

/** What an exit code says. */
export const ExitCode = {
  /** Done; after SIGTERM: every connection ended by itself. */
  OK: 0,
  /** The configuration has errors. */
  CONFIG_INVALID: 1,
  /** Unknown command or option, or an argument is missing. */
  USAGE: 2,
  /** An address cannot be listened on: taken, not permitted, or not of this machine. */
  CANNOT_LISTEN: 3,
  /** Not Linux on x64 or arm64, or the pinned runtime or a dependency is missing. */
  UNSUPPORTED: 4,
  /** The limit of open file descriptors is too low. */
  TOO_FEW_DESCRIPTORS: 5,
  /** Connections were cut: the drain timed out, or the stop was not to wait. */
  CUT_SHORT: 6,
  /** What was applied to the mesh is not served by every node proxy: one refuses it, or there was not enough time. */
  NOT_SERVED: 7,
  /** A defect in Portcullis. */
  INTERNAL: 70,
} as const;

export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

/** An error that ends the program with one sentence on stderr and an exit code. */
export class ExitError extends Error {
  readonly code: ExitCode;

  constructor(code: ExitCode, sentence: string) {
    super(sentence);
    this.code = code;
  }
}
