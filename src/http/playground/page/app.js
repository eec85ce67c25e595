// The page: chooses the picture, holds one or two panes, and switches to the status.

import { setColours } from './canvas.js';
import { Pane } from './pane.js';
import { Picture, settings, taskPicture } from './server.js';
import { watch } from './status.js';

const byId = (id) => document.getElementById(id);

function report(text, isError = false) {
  byId('message').textContent = text;
  byId('message').classList.toggle('error', isError);
}

/** A request is done. The error of another one that came meanwhile stays. */
report.done = () => {
  if (!byId('message').classList.contains('error')) report('');
};

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function start() {
  let options;
  try {
    options = await settings();
  } catch (error) {
    report(error.message, true);
    return;
  }
  setColours(options.palette, options.unnamed);
  byId('models').textContent = options.models;
  const panes = [new Pane(options, report), new Pane(options, report)];
  byId('panes').append(panes[0].root);
  let picture = null;

  async function open(blob, name) {
    try {
      // browsers apply the EXIF orientation, as the server does
      const bitmap = await createImageBitmap(blob);
      picture = new Picture(await dataUri(blob), bitmap);
    } catch {
      report(`${name} is not an image that this browser can show.`, true);
      return;
    }
    report('');
    panes[0].setPicture(picture);
    if (byId('compare').checked) panes[1].setPicture(picture);
  }

  byId('file').addEventListener('change', (event) => {
    const [file] = event.target.files;
    if (file) open(file, file.name);
  });
  byId('example').addEventListener('click', async () => {
    const response = await fetch('playground/shapes.png');
    await open(await response.blob(), 'the example');
    const prompt = panes[0].field('prompt');
    if (!prompt.value) {
      prompt.value = 'red circle. blue star.';
      panes[0].find();
    }
  });
  byId('task').hidden = !options.tasks;
  byId('task').addEventListener('submit', async (event) => {
    event.preventDefault();
    const number = event.target.elements.number.value;
    try {
      await open(await taskPicture(number), `The image of task ${number}`);
    } catch (error) {
      report(error.message, true);
    }
  });
  document.addEventListener('paste', (event) => {
    const file = [...event.clipboardData.files].find((file) => file.type.startsWith('image/'));
    if (file) open(file, 'The pasted file');
  });
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    document.body.classList.add('dropping');
  });
  document.addEventListener('dragleave', () => document.body.classList.remove('dropping'));
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    document.body.classList.remove('dropping');
    const [file] = event.dataTransfer.files;
    if (file) open(file, file.name);
  });
  byId('compare').addEventListener('change', (event) => {
    if (event.target.checked) {
      byId('panes').append(panes[1].root);
      if (picture) panes[1].setPicture(picture);
    } else {
      panes[1].root.remove();
    }
    panes[0].drawing.draw();
  });

  const tabs = [byId('tab-try'), byId('tab-status')];
  let stop = null;
  function show(tab) {
    for (const other of tabs) {
      const isShown = other === tab;
      other.setAttribute('aria-selected', String(isShown));
      other.tabIndex = isShown ? 0 : -1;
      byId(other.getAttribute('aria-controls')).hidden = !isShown;
    }
    stop?.();
    stop = tab === tabs[1] ? watch(byId('status')) : null;
    history.replaceState(null, '', tab === tabs[1] ? '#status' : location.pathname);
  }
  for (const tab of tabs) {
    tab.addEventListener('click', () => show(tab));
    tab.addEventListener('keydown', (event) => {
      if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
      const other = tabs[1 - tabs.indexOf(tab)];
      show(other);
      other.focus();
    });
  }
  if (location.hash === '#status') show(tabs[1]);
}

start();
