// What the interface makes of bypassed nodes, of graphs saved before, of pasted nodes and unpacked subgraphs.
// Each function runs in the page; `browser.mjs` calls them, `test_browser.py` judges what they give.

// The prompt of each graph as it is (''), and with each of our nodes bypassed (its id).
export async function prompts(graphs) {
  const all = {};
  for (const [name, graph] of Object.entries(graphs)) {
    // In the tab that is open: with many, the interface may turn to another.
    await window.app.loadGraphData(graph, true, true, window.app.extensionManager.workflow.activeWorkflow);
    const send = async () => (await window.app.graphToPrompt()).output;
    all[name] = { '': await send() };
    for (const node of window.app.graph.nodes) {
      if (!node.type.startsWith('ContextDiffusion') || node.mode !== 0) continue;
      node.mode = 4;
      all[name][node.id] = await send();
      node.mode = 0;
    }
  }
  return all;
}

// Encode Visual Context with `count` context images: its sockets and the images in them, after each thing that copies it.
export async function copies(count) {
  const { app, LiteGraph } = window;
  const settled = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))));
  const encoders = () => app.graph.nodes.filter((node) => node.type === 'ContextDiffusionEncodeVisualContext');
  const images = async (node) => {
    const prompt = (await app.graphToPrompt()).output;
    const inputs = Object.entries(prompt[String(node.id)].inputs).filter(([name]) => name.startsWith('images.'));
    // Each image has a width of its own to be known by.
    return Object.fromEntries(inputs.map(([name, link]) => [name, prompt[link[0]].inputs.width]));
  };
  app.graph.clear();
  const add = (type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node;
  };
  const encoder = add('ContextDiffusionEncodeVisualContext');
  add('ContextDiffusionLoader').connect(3, encoder, 0);
  for (let index = 0; index < count; index++) {
    const image = add('EmptyImage');
    image.widgets.find((widget) => widget.name === 'width').value = 64 + index;
    image.connect(0, encoder, encoder.inputs.findIndex((input) => input.name === `images.image${index}`));
    await settled();
  }
  const found = { made: await images(encoder) };

  await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())));
  await settled();
  found.loaded = await images(encoders()[0]);

  const before = new Set(app.graph.nodes);
  app.canvas.selectItems([...before]);
  app.canvas.copyToClipboard();
  app.canvas.pasteFromClipboard();
  await settled();
  found.pasted = await images(encoders().find((node) => !before.has(node)));
  for (const node of app.graph.nodes.filter((node) => !before.has(node))) app.graph.remove(node);
  await settled();

  const inside = app.graph.nodes.filter((node) => node.type !== 'ContextDiffusionLoader');
  const { node } = app.graph.convertToSubgraph(new Set(inside));
  await settled();
  app.graph.unpackSubgraph(node);
  await settled();
  found.unpacked = await images(encoders()[0]);
  return found;
}
