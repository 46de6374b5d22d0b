// The pictures of the help pages: each node as it looks in an example workflow that was run.
//
//     node help_pictures.mjs TOOLS CHROMIUM URL PACK FOLDER
//
// Started by make_thumbnails.py; TOOLS is a folder with node_modules/playwright-core.

import { createRequire } from 'module';
import path from 'path';

const [tools, chromium, url, pack, folder] = process.argv.slice(2);
const playwright = createRequire(path.join(tools, 'x.js'))('playwright-core');
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];
// Workflow -> node id of ours -> the nodes beside it that belong into the picture, by type or title.
const PICTURES = {
  '02 Three context images with weights': {
    ContextDiffusionLoader: [],
    ContextDiffusionExampleImages: ['ContextDiffusionEncodeVisualContext', 'What the encoder sees'],
    ContextDiffusionEncodeVisualContext: ['What the encoder sees'],
    ContextDiffusionCombine: ['Prompt'],
    ContextDiffusionApplyQueryLayout: ['What the layout encoder sees'],
    ContextDiffusionSampler: ['EmptyLatentImage', 'VAEDecode', 'SaveImage'],
  },
  '09 Reverse task, image to map': {
    ContextDiffusionLayoutMap: ['ContextDiffusionEncodeVisualContext', 'What the encoder sees'],
  },
  '10 Saved style file': {
    ContextDiffusionLoadVisualContext: ['ContextDiffusionExampleImages', 'Prompt', 'ContextDiffusionCombine'],
    ContextDiffusionSaveVisualContext: ['ContextDiffusionEncodeVisualContext'],
  },
  "12 SamplerCustomAdvanced with our guider": {
    ContextDiffusionGuider: ['RandomNoise', 'KSamplerSelect', 'BasicScheduler', 'EmptyLatentImage', 'SamplerCustomAdvanced', 'VAEDecode', 'SaveImage'],
  },
};
// Where the graph is free of the interface's own panels.
const LEFT = 120, TOP = 130, WIDTH = 1200, HEIGHT = 760;

const settings = { 'Comfy.TutorialCompleted': true, 'Comfy.Minimap.Visible': false, 'Comfy.Graph.CanvasInfo': false };
await fetch(`${url}/settings`, { method: 'POST', body: JSON.stringify(settings) });
const browser = await playwright.chromium.launch({ executablePath: chromium, args: FLAGS });
const page = await browser.newPage({ viewport: { width: 1700, height: 1000 } });
page.setDefaultTimeout(120_000);
await page.goto(url);
await page.waitForFunction(() => window.app?.extensionManager && window.app?.graph?.nodes.length);
await page.waitForTimeout(3000);

for (const [workflow, nodes] of Object.entries(PICTURES)) {
  await page.evaluate(async ([pack, workflow]) => {
    const answer = await fetch(`/api/workflow_templates/${pack}/${encodeURIComponent(workflow)}.json`);
    await window.app.loadGraphData(await answer.json());
    // Muted nodes are shown at work.
    for (const node of window.app.graph.nodes) node.mode = 0;
    await window.app.queuePrompt(0, 1);
  }, [pack, workflow]);
  await page.waitForFunction(
    () => window.app.graph.nodes.filter((node) => node.type === 'SaveImage').every((node) => node.imgs?.[0]?.complete),
    null, { timeout: 600_000 },
  );
  for (const [type, beside] of Object.entries(nodes)) {
    const clip = await page.evaluate(([type, beside, left, top, width, height]) => {
      const { graph, canvas } = window.app;
      const main = graph.nodes.filter((node) => node.type === type).at(type === 'ContextDiffusionSaveVisualContext' ? -1 : 0);
      const near = (node) => Math.abs(node.pos[0] - main.pos[0]);
      const chosen = [main];
      for (const name of beside) {
        const all = graph.nodes.filter((node) => node.type === name || node.title === name);
        chosen.push(...all.sort((a, b) => near(a) - near(b)).slice(0, 1));
      }
      if (type === 'ContextDiffusionLayoutMap') chosen.push(...graph.nodes.filter((node) => node.type === type));
      const x = Math.min(...chosen.map((node) => node.pos[0])) - 20;
      const y = Math.min(...chosen.map((node) => node.pos[1])) - 60;
      const right = Math.max(...chosen.map((node) => node.pos[0] + node.size[0])) + 20;
      const bottom = Math.max(...chosen.map((node) => node.pos[1] + node.size[1])) + 20;
      const scale = Math.min(1, width / (right - x), height / (bottom - y));
      canvas.ds.scale = scale;
      canvas.ds.offset[0] = left / scale - x;
      canvas.ds.offset[1] = top / scale - y;
      canvas.setDirty(true, true);
      return { x: left, y: top, width: (right - x) * scale, height: (bottom - y) * scale };
    }, [type, beside, LEFT, TOP, WIDTH, HEIGHT]);
    await page.waitForTimeout(1500);
    await page.screenshot({ path: path.join(folder, `${type}.jpg`), type: 'jpeg', quality: 70, clip });
    console.log(`made ${type}.jpg`);
  }
}
await browser.close();
