// One gateway for those tests of a file that only send it requests. Each has a listener of its own, with routes and
// backends that no other test reaches: it sees what it would see of a gateway of its own, without the second of a core
// that a start takes. What is counted for the whole process is shared, as is its log.

import assert from 'node:assert/strict';
import { after } from 'node:test';
import { type Gateway, type Lifetime, startGateway } from './support.ts';

/** What one test has in the configuration. */
export interface Part {
  /** Text of block lists, indented by two. */
  routes: string;
  backends: string;
  /** Further keys of the listener, in flow style. */
  listener?: string;
}

/** Says what a test needs; `name` is that of its listener, and a prefix for names of its own. */
export type PartPlan = (name: string, lifetime: Lifetime) => Part | Promise<Part>;

/** The whole file, for what several of its tests use: it ends after the last of them. For the top of a file. */
export function fileLifetime(): Lifetime {
  const ends: (() => unknown)[] = [];
  after(async () => {
    for (const end of ends.reverse()) await end();
  });
  return { after: (end) => void ends.push(end) };
}

/** A gateway that starts when the first test asks for it. For the top of a file, like its parts. */
export class SharedGateway {
  private readonly top: string;
  private readonly lifetime = fileLifetime();
  private readonly plans: PartPlan[] = [];
  private started: Promise<Gateway> | undefined;

  /** `top`: further lines of the configuration. */
  constructor(top = '', workers = 2) {
    this.top = `workers: ${workers}\n${top}`;
  }

  /** Adds what a test needs; the result is for the test, and gives it the gateway and its own port there. */
  part(plan: PartPlan): () => Promise<{ gateway: Gateway; port: number }> {
    assert.equal(this.started, undefined, 'the gateway has started without it');
    const name = `t${this.plans.push(plan)}`;
    return async () => {
      this.started ??= this.start();
      const gateway = await this.started;
      return { gateway, port: await gateway.port(name) };
    };
  }

  private async start(): Promise<Gateway> {
    const names = this.plans.map((_, index) => `t${index + 1}`);
    const parts = await Promise.all(this.plans.map((plan, index) => plan(names[index]!, this.lifetime)));
    const listeners = parts.map(
      ({ listener }, index) =>
        `{name: ${names[index]}, address: "127.0.0.1:0"${listener === undefined ? '' : `, ${listener}`}}`,
    );
    const gateway = startGateway(
      this.lifetime,
      `
admin: {address: "127.0.0.1:0"}
${this.top}
listeners: [${listeners.join(', ')}]
routes:
${parts.map(({ routes }) => routes).join('\n')}
backends:
${parts.map(({ backends }) => backends).join('\n')}
`,
    );
    this.lifetime.after(() => assert.doesNotMatch(gateway.stderr, /worker died/));
    await gateway.serving();
    return gateway;
  }
}
