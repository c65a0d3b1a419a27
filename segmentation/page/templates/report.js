// The viewers. Their pictures are data URIs in a JSON element of each; without this script the first slice stands still.
for (const viewer of document.querySelectorAll(".viewer")) {
  const data = JSON.parse(viewer.querySelector("script").textContent);
  const find = (name) => viewer.querySelector(`[data-is="${name}"]`);
  const [patients, contrasts, slider, labels, place] = ["patient", "contrast", "slice", "labels", "place"].map(find);
  const grays = [...viewer.querySelectorAll("img.gray")];
  const overlays = [...viewer.querySelectorAll("img.labels")];
  const scores = [...viewer.querySelectorAll("[data-is='dice']")];

  const show = () => {
    const patient = data.patients[patients.selectedIndex];
    const slice = patient.slices[slider.value];
    const words = `${patient.name}, ${slice.place}, ${data.contrasts[contrasts.selectedIndex]}`;
    grays.forEach((image, k) => {
      image.src = slice.contrasts[contrasts.selectedIndex];
      image.alt = `${words}${k ? ", " + data.titles[k - 1] : ""}`;
    });
    overlays.forEach((image, k) => { image.src = slice.labels[k]; });
    scores.forEach((text, k) => { text.textContent = patient.dice[k] ? `${data.target} ${patient.dice[k]}` : ""; });
    const shown = `${slice.place} (${Number(slider.value) + 1} of ${patient.slices.length} shown)`;
    slider.setAttribute("aria-valuetext", shown);
    place.textContent = shown;
    viewer.classList.toggle("plain", !labels.checked);
  };
  const choose = () => {
    const count = data.patients[patients.selectedIndex].slices.length;
    slider.max = count - 1;
    slider.value = Math.floor(count / 2);
    show();
  };
  patients.addEventListener("change", choose);
  for (const control of [contrasts, slider, labels]) control.addEventListener("input", show);
  // Arrow keys move the slice wherever the focus is in the viewer, but in lists they choose, and the slider knows them.
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!step || event.target === slider || event.target.tagName === "SELECT") return;
    event.preventDefault();
    slider.value = Number(slider.value) + step;
    show();
  });
  choose();
}
