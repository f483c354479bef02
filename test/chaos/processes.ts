// The processes around the gateway in a chaos run: backends and Redis. Each comes back where it was.

import { type ChildProcess, fork, spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { Running } from '../integration/support.ts';
import type { Behaviour } from './backend.ts';

/** A backend process. */
export class Backend {
  readonly name: string;
  readonly host: string;
  port: number;
  /** Something is wrong with it at present, or with what is known of it. */
  inTrouble = false;
  private child: ChildProcess | undefined;

  constructor(name: string, host: string, port: number) {
    this.name = name;
    this.host = host;
    this.port = port;
  }

  /** Starts it; resolves when it listens. */
  async start(): Promise<void> {
    const child = fork(join(import.meta.dirname, 'backend.ts'), [this.name, this.host, String(this.port)]);
    this.child = child;
    await new Promise<void>((resolve, reject) => {
      child.once('message', () => resolve());
      child.once('exit', () => reject(new Error(`${this.name} did not start`)));
    });
  }

  /** Gives its process to another one, so that this one can start again elsewhere. */
  release(to: Backend): void {
    to.child = this.child;
    this.child = undefined;
  }

  behave(behaviour: Behaviour): void {
    this.child!.send(behaviour);
  }

  signal(signal: NodeJS.Signals): void {
    this.child!.kill(signal);
  }

  kill(): void {
    this.child?.removeAllListeners('exit');
    this.child?.kill('SIGKILL');
  }
}

/** A Redis server, which keeps nothing when it is killed. */
export class Redis {
  readonly port: number;
  private readonly directory: string;
  private running: Running | undefined;

  constructor(port: number, directory: string) {
    this.port = port;
    this.directory = directory;
  }

  /** Whether the Debian package is there; where CI runs it must be. */
  static get installed(): boolean {
    return process.env.CI !== undefined || spawnSync('redis-server', ['--version']).error === undefined;
  }

  /** Starts it; resolves when it takes connections. */
  async start(): Promise<void> {
    const args = ['--port', String(this.port), '--bind', '127.0.0.1', '--save', '', '--dir', this.directory];
    this.running = new Running(spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'pipe'] }));
    await this.running.printed(/Ready to accept connections/);
  }

  signal(signal: NodeJS.Signals): void {
    this.running!.kill(signal);
  }

  /** Kills it; resolves when it is gone. */
  async kill(): Promise<void> {
    if (this.running === undefined) return;
    this.running.kill('SIGKILL');
    await this.running.finished;
  }
}
