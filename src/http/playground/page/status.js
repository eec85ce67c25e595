// The status page: what the server does and what went wrong, read again every two seconds while it is open.

import { status } from './server.js';

const INTERVAL_MS = 2000;

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

/** A table; numbers are right-aligned. */
function table(heads, rows) {
  const made = element('table', element('thead', element('tr', ...heads.map((head, i) => {
    const cell = element('th', head);
    if (typeof rows[0]?.[i] === 'number') cell.className = 'number';
    return cell;
  }))));
  const body = element('tbody');
  for (const row of rows) {
    body.append(element('tr', ...row.map((value) => {
      const cell = element('td', value instanceof Node ? value : String(value));
      if (typeof value === 'number') cell.className = 'number';
      return cell;
    })));
  }
  made.append(body);
  return made;
}

const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MiB`;

function ago(seconds) {
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

function link(href, text) {
  const made = element('a', text);
  made.href = href;
  return made;
}

function batchRow(batch) {
  const bar = element('progress');
  bar.max = batch.total;
  bar.value = batch.done + batch.failed;
  bar.setAttribute('aria-label', `${batch.done + batch.failed} of ${batch.total} tasks`);
  const left = batch.total - batch.done - batch.failed;
  const state = batch.is_running ? 'running' : left ? 'ended early' : 'done';
  return [batch.project || 'unnamed', state, bar, batch.done, left, batch.failed, batch.last_error ?? '', ago(batch.seconds)];
}

const RUN_STATES = { running: 'running', ended: 'ended', silent: 'no sign of life' };

function runRow(run) {
  const bar = element('progress');
  bar.max = Math.max(run.total, run.done, 1);
  bar.value = run.done;
  bar.setAttribute('aria-label', `${run.done} of ${run.total} tasks`);
  const left = Math.max(run.total - run.done, 0);
  return [run.command, `project ${run.project}`, RUN_STATES[run.state], bar, run.done - run.failed, left, run.failed, run.last_error ?? '', ago(run.seconds)];
}

/** What `groundling doctor` found last, and how to run it. */
function setup(doctor) {
  const hint = element('p', element('code', 'groundling doctor --project N'), ' checks the connection with Label Studio, a project and the models. ');
  if (!doctor) {
    hint.append('Its findings appear here if it runs with the same MODEL_DIR.');
    return [hint];
  }
  hint.append(`It ran ${ago(doctor.seconds)} ago${doctor.project ? ` for project ${doctor.project}` : ''}.`);
  return [hint, table(['', 'Finding'], doctor.findings.map(({ severity, text }) => {
    const finding = element('span', text);
    if (severity === 'fail') finding.className = 'problem-error';
    return [severity === 'fail' ? 'FAIL' : severity, finding];
  }))];
}

function render(state) {
  const { models } = state;
  const parts = [
    element('h2', 'Models'),
    table([], [
      ['Models', models.version],
      ['State', models.waits_for ? `not ready: ${models.waits_for}` : 'ready'],
      ['Device', models.device ?? ''],
    ]),
    element('h2', 'Work'),
    table(['Requests of annotators', ...state.steps.map((step) => `Steps: ${step.urgency}`), 'Memory of requests', 'at most'], [
      [state.requests, ...state.steps.map((step) => step.count), mebibytes(state.request_bytes), mebibytes(state.request_bytes_peak)],
    ]),
    element('h2', 'Batches'),
    state.batches.length
      ? table(['Project', 'State', 'Progress', 'Done', 'Left', 'Failed', 'Last error', 'Started'], state.batches.map(batchRow))
      : element('p', 'No batch since the start.'),
    element('h2', 'Commands'),
    state.runs.length
      ? table(['Command', 'Project', 'State', 'Progress', 'Done', 'Left', 'Failed', 'Last error', 'Started'], state.runs.map(runRow))
      : element('p', 'No run of annotate, warm or evaluate with the same MODEL_DIR in the last days.'),
    element('h2', 'Caches'),
    table(['Cache', 'Results', 'Size', 'Limit', 'Hits', 'Misses'], state.caches.map((cache) => [
      cache.name.replaceAll('_', ' '), cache.entries, mebibytes(cache.bytes), mebibytes(cache.capacity), cache.hits, cache.misses,
    ])),
    element('h2', 'Recent problems'),
    state.problems.length
      ? table(['Ago', 'Times', 'Problem'], state.problems.map((problem) => {
        const text = element('span', problem.text);
        if (problem.is_error) text.className = 'problem-error';
        return [ago(problem.seconds), problem.count, text];
      }))
      : element('p', 'None.'),
    element('h2', 'Setup'),
    ...setup(state.doctor),
    element('p', link('metrics', 'Metrics for Prometheus'), ' · ', link('api-docs', 'API document')),
  ];
  return parts;
}

/** Shows the status in `root` until the returned function is called. */
export function watch(root) {
  let timer;
  let isStopped = false;
  const update = async () => {
    try {
      const state = await status();
      if (!isStopped) root.replaceChildren(...render(state));
    } catch (error) {
      if (!isStopped) root.replaceChildren(element('p', error.message));
    }
    if (!isStopped) timer = setTimeout(update, INTERVAL_MS);
  };
  update();
  return () => {
    isStopped = true;
    clearTimeout(timer);
  };
}
