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
