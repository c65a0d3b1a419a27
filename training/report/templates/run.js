// Sheets over time. Their pictures are data URIs in a JSON element; without this script the last ones stand still.
for (const viewer of document.querySelectorAll(".viewer")) {
  const data = JSON.parse(viewer.querySelector("script").textContent);
  const slider = viewer.querySelector("[data-is='time']");
  const told = viewer.querySelector("[data-is='told']");
  const places = [...viewer.querySelectorAll("[data-is='place']")];
  const images = [...viewer.querySelectorAll(".over-time")].map((figure) => figure.querySelector("img.fakes"));

  const show = () => {
    const step = Number(slider.value);
    told.textContent = data.steps[step];
    slider.setAttribute("aria-valuetext", data.steps[step]);
    data.runs.forEach((run, k) => {
      places[k].textContent = run.told[step];
      if (!images[k]) return;
      images[k].style.visibility = run.pictures[step] ? "visible" : "hidden";
      if (run.pictures[step]) images[k].src = run.pictures[step];
      images[k].alt = `Fakes of ${run.name} at ${run.told[step]}`;
    });
  };
  slider.addEventListener("input", show);
  // Arrow keys move the time wherever the focus is in the viewer. The slider knows them, and sheets scroll sideways.
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const sheet = event.target.closest(".scroll");
    if (!step || event.target === slider || (sheet && sheet.scrollWidth > sheet.clientWidth)) return;
    event.preventDefault();
    slider.value = Number(slider.value) + step;
    show();
  });
  show();
}
// Values under the pointer. The table has numbers for everybody.
const readouts = JSON.parse(document.getElementById("readouts").textContent);
[...document.querySelectorAll(".plot")].forEach((plot, n) => {
  const data = readouts[n];
  const hair = plot.querySelector(".hair");
  const list = plot.querySelector(".readout");
  const digits = (value) => String(Number(value.toPrecision(4))).replace("-", "\u2212");
  const line = (color, text) => {
    const item = document.createElement("li");
    if (color) item.appendChild(document.createElement("i")).style.background = color;
    item.append(text);
    return item;
  };
  const hide = () => { hair.hidden = list.hidden = true; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.querySelector("svg").getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - data.left) / (data.right - data.left);
    if (share < 0 || share > 1) { hide(); return; }
    const kimg = share * data.end;
    // Of each line, the nearest point; none beyond its end.
    const near = data.lines.map((one) => one.kimg.reduce(
      (best, at, k) => (Math.abs(at - kimg) < Math.abs(one.kimg[best] - kimg) ? k : best), 0));
    const closest = data.lines.map((one, k) => one.kimg[near[k]]).reduce(
      (best, at) => (Math.abs(at - kimg) < Math.abs(best - kimg) ? at : best));
    const reach = data.end / 40;
    const items = data.lines.flatMap((one, k) => (Math.abs(one.kimg[near[k]] - closest) > reach ? []
      : [line(one.color, `${one.name ? one.name + ": " : ""}${digits(one.values[near[k]])}`)]));
    list.replaceChildren(line("", `${digits(closest)} kimg`), ...items);
    hair.style.left = `${100 * (data.left + closest / data.end * (data.right - data.left))}%`;
    hair.hidden = list.hidden = false;
  });
  plot.addEventListener("pointerleave", hide);
});
