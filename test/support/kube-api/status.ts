// Refusals of the API server for tests, as Status objects with the wording of the real one where clients look at it.

/** A refusal. */
export class Refusal extends Error {
  readonly body: Record<string, unknown> & { code: number };

  constructor(code: number, reason: string, message: string, more: Record<string, unknown> = {}) {
    super(message);
    this.body = { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Failure', message, reason, code, ...more };
  }
}

/** A version that has been forgotten. */
export function expired(asked: string, oldest: number): Refusal {
  return new Refusal(410, 'Expired', `too old resource version: ${asked} (${oldest})`);
}

/** A page of a moment that has been forgotten; `token` goes on at another moment. */
export function expiredContinue(token: string): Refusal {
  const message =
    'The provided continue parameter is too old to display a consistent list result. You can start a new list ' +
    'without the continue parameter, or use the continue token in this response to retrieve the remainder of the ' +
    'results. Continuing with the provided token results in an inconsistent list.';
  return new Refusal(410, 'Expired', message, { metadata: { continue: token } });
}

/** A version that has not been yet. */
export function tooLarge(asked: number, current: number): Refusal {
  return new Refusal(504, 'Timeout', `Too large resource version: ${asked}, current: ${current}`, {
    details: {
      causes: [{ reason: 'ResourceVersionTooLarge', message: 'Too large resource version' }],
      retryAfterSeconds: 1,
    },
  });
}
