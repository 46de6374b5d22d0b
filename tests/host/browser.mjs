// What a person does in the interface, in a real browser; `test_browser.py` starts it and judges what it prints.
//
//     node browser.mjs TOOLS CHROMIUM URL PACK SCREENSHOTS GRAPHS IMAGES
//
// TOOLS is a folder with node_modules/playwright-core, GRAPHS one with saved graphs, IMAGES how many context images are
// copied. The last line printed is a JSON object.

import { createRequire } from 'module';
import fs from 'fs';
import path from 'path';
import { copies, prompts } from './browser_sockets.mjs';

const [tools, chromium, url, pack, screenshots, graphs, images] = process.argv.slice(2);
const playwright = createRequire(path.join(tools, 'x.js'))('playwright-core');
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];
const MINUTE = 60_000;

// Without this the interface greets a new user with its templates, at a moment of its own.
await fetch(`${url}/settings`, { method: 'POST', body: JSON.stringify({ 'Comfy.TutorialCompleted': true }) });

const browser = await playwright.chromium.launch({ executablePath: chromium, args: FLAGS });
const page = await browser.newPage({ viewport: { width: 1600, height: 900 } });
page.setDefaultTimeout(2 * MINUTE);
const found = { console: [], failed: [] };
page.on('console', (message) => {
  if (message.type() === 'error') found.console.push({ text: message.text(), url: message.location().url });
});
page.on('pageerror', (error) => found.console.push({ text: `${error.message}\n${error.stack}`, url: '' }));
page.on('response', (answer) => {
  if (answer.status() >= 400) found.failed.push(answer.url());
});

async function shot(name) {
  await page.screenshot({ path: path.join(screenshots, `${name}.png`) });
}

try {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph?.nodes.length);

  // The template browser lists the pack with its pictures.
  await page.getByRole('button', { name: 'Templates' }).first().click();
  await page.getByRole('button', { name: pack, exact: true }).first().click();
  const cards = page.locator('[data-testid^="template-workflow-"]');
  await cards.first().waitFor();
  const names = await cards.evaluateAll((all) => all.map((card) => card.dataset.testid.replace('template-workflow-', '')));
  found.templates = {};
  for (const name of names) {
    const card = page.getByTestId(`template-workflow-${name}`);
    await card.scrollIntoViewIfNeeded();
    const image = card.locator('img').first();
    await image.waitFor();
    await page.waitForFunction((element) => element.complete && element.naturalWidth > 0, await image.elementHandle());
    found.templates[name] = await image.evaluate((element) => [element.naturalWidth, element.naturalHeight]);
  }
  await shot('1-templates');

  // The first template opens, and Run shows its image in the graph.
  const first = [...names].sort()[0];
  found.first = first;
  await page.getByTestId(`template-workflow-${first}`).click();
  await page.waitForFunction(() => window.app.graph.nodes.some((node) => node.type === 'SaveImage' && node.inputs[0].link != null));
  await page.getByTestId('template-workflows-content').waitFor({ state: 'hidden' });
  found.missing = await page.evaluate(() => window.app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type));
  await page.waitForTimeout(1000);
  await shot('2-opened');
  await page.getByTestId('queue-button').click();
  const shown = await page.waitForFunction(() => {
    const images = window.app.graph.nodes.find((node) => node.type === 'SaveImage').imgs;
    return images?.length && images[0].complete && images[0].naturalWidth && [images[0].naturalWidth, images[0].naturalHeight];
  }, null, { timeout: 8 * MINUTE });
  found.shown = await shown.jsonValue();
  await page.waitForTimeout(1000);
  await shot('3-run');

  // The help page of a node opens from the button above the selected node.
  await page.evaluate(() => {
    const node = window.app.graph.nodes.find((node) => node.type === 'ContextDiffusionEncodeVisualContext');
    window.app.canvas.deselectAll?.();
    window.app.canvas.selectNode(node);
    window.app.canvas.setDirty(true, true);
  });
  await page.getByTestId('info-button').click();
  const heading = page.getByRole('heading', { name: 'Encode Visual Context' }).first();
  await heading.waitFor();
  const pictures = page.locator(`img[src*="/extensions/${pack}/docs/"]`);
  await pictures.first().waitFor();
  await page.waitForFunction(
    (selector) => [...document.querySelectorAll(selector)].every((image) => image.complete),
    `img[src*="/extensions/${pack}/docs/"]`,
  );
  found.help = await pictures.evaluateAll((all) => all.map((image) => [image.src, image.naturalWidth]));
  await shot('4-help');

  // What the interface itself would send, for every template and for graphs saved before.
  const templates = {};
  for (const name of names) {
    const answer = await fetch(`${url}/api/workflow_templates/${pack}/${encodeURIComponent(name)}.json`);
    templates[name] = await answer.json();
  }
  found.prompts = await page.evaluate(prompts, templates);
  const saved = {};
  for (const file of fs.readdirSync(graphs)) saved[path.parse(file).name] = JSON.parse(fs.readFileSync(path.join(graphs, file)));
  found.saved = await page.evaluate(prompts, saved);
  found.copies = await page.evaluate(copies, Number(images));
} catch (error) {
  found.error = error.stack;
  await shot('error').catch(() => {});
}
await browser.close();
console.log(JSON.stringify(found));
