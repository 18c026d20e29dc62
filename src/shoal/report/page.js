(async () => {
  const plots = [...document.querySelectorAll(".plot")];
  const say = (text) => plots.forEach((div) => { div.textContent = text; });
  try {
    const packed = atob(document.getElementById("plotly").textContent.trim());
    const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const tag = document.createElement("script");
    tag.textContent = await new Response(stream).text();
    document.head.append(tag);
  } catch (error) {
    say("The plots need a browser of 2023 or later.");
    return;
  }
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { responsive: true, displayModeBar: false };
  const draw = (div, name) => Plotly.react(div, figures[name].data, figures[name].layout, config);
  plots.forEach((div) => draw(div, div.dataset.figure));
  document.querySelectorAll("select[data-plot]").forEach((list) => {
    list.addEventListener("change", () => draw(document.getElementById(list.dataset.plot), list.value));
  });
})();
