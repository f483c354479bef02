// How core code on the control thread writes to the log, without knowing where the log goes.
// Never used on the packet path: packet workers send `log` messages instead (protocol.ts).

/** Severity of a log line. */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error';

/** Values that may stand behind a key in a log line. */
export type LogFields = Record<string, string | number | boolean | undefined>;

/** Writes one line; fields that are undefined are left out. */
export type Log = (level: LogLevel, message: string, fields?: LogFields) => void;
