// graphile-worker with undici: its local queue and batched completion on, as its own benchmark page has them.
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { makeWorkerUtils, runMigrations, runOnce } from 'graphile-worker';
import { Pool } from 'undici';

const { DSN, URL: target } = process.env;
const jobs = Number(process.env.JOBS);
const inFlight = Number(process.env.IN_FLIGHT);
const url = new URL(target);
const http = new Pool(url.origin, { connections: inFlight, pipelining: 1 });
const key = Buffer.alloc(32);
const text = 'The quick brown fox jumps over the lazy dog. '.repeat(8);
const payload = (number) => ({
  type: 'message.received',
  workspace_id: 'ws_42',
  data: {
    message: { id: number, type: 'text', direction: 'in', body: text },
    contact: { phone: '+4915112345678', name: 'Erika Mustermann' },
  },
});

const hook = async (event, { job }) => {
  const body = JSON.stringify(event);
  const at = String(Math.floor(Date.now() / 1000));
  const code = createHmac('sha256', key).update(`job_${job.id}.${at}.${body}`).digest('base64');
  const answer = await http.request({
    path: url.pathname,
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'webhook-id': `job_${job.id}`,
      'webhook-timestamp': at,
      'webhook-signature': `v1,${code}`,
    },
    body,
  });
  await answer.body.text();
  if (answer.statusCode !== 200) throw new Error(`status ${answer.statusCode}`);
};

const preset = {
  worker: {
    connectionString: DSN,
    concurrentJobs: inFlight,
    maxPoolSize: 16,
    localQueue: { size: Math.max(500, inFlight + 1) },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};
const options = { preset, noHandleSignals: true };
await runMigrations(options);
const utils = await makeWorkerUtils({ preset });
for (let start = 0; start < jobs; start += 500) {
  const chunk = Math.min(500, jobs - start);
  await utils.addJobs(
    Array.from({ length: chunk }, (_, k) => ({ identifier: 'hook', payload: payload(start + k) })),
  );
}
await utils.release();
console.log('draining');
await once(process.stdin, 'data'); // that was read
process.stdin.pause();
const [began, before] = [performance.now(), process.cpuUsage()];
await runOnce({ ...options, taskList: { hook } });
const seconds = (performance.now() - began) / 1000;
const { user, system } = process.cpuUsage(before);
await http.close();
console.log(JSON.stringify({ jobs, drain_seconds: seconds, cpu_seconds: (user + system) / 1e6 }));
process.exit(0);
