"use strict";
// The slider on thresholds: numbers of the table, the line in the chart of all classes and the points on the curves.
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("slider");
const rows = [...document.querySelectorAll("#counts tbody tr"), document.querySelector("#counts tfoot tr")];

function percent(value) {
  return Number.isFinite(value) ? (100 * value).toFixed(1) + "%" : "–";
}

// A position in a chart, from the shares x and y of its axes.
function place(figure, x, y) {
  const [x0, x1] = JSON.parse(figure.dataset.x), [y0, y1] = JSON.parse(figure.dataset.y);
  return [x0 + x * (x1 - x0), y0 + y * (y1 - y0)];
}

function addMark(figure, name) {
  const mark = document.createElementNS(figure.querySelector("svg").namespaceURI, name);
  mark.setAttribute("class", "mark");
  figure.querySelector("svg").append(mark);
  return mark;
}

const overview = document.getElementById("overview"), line = addMark(overview, "line");
const curves = [...document.querySelectorAll(".curves .plot")].map(figure => [figure, addMark(figure, "circle")]);

function figures(hits, falseAlarms, objects) {
  return { precision: hits / (hits + falseAlarms), recall: hits / objects,
           f1: objects ? 2 * hits / (hits + falseAlarms + objects) : NaN };
}

function update() {
  const step = Number(slider.value), threshold = data.thresholds[step];
  const sum = values => values.reduce((total, value) => total + value, 0);
  const hits = data.hits.map(counts => counts[step]), falseAlarms = data.falseAlarms.map(counts => counts[step]);
  const objects = [...data.objects, sum(data.objects)];
  hits.push(sum(hits));
  falseAlarms.push(sum(falseAlarms));
  document.getElementById("threshold").value = threshold.toFixed(data.decimals);
  slider.setAttribute("aria-valuetext", threshold.toFixed(data.decimals));
  rows.forEach((row, k) => {
    const { precision, recall, f1 } = figures(hits[k], falseAlarms[k], objects[k]);
    const texts = [objects[k], hits[k], objects[k] - hits[k], falseAlarms[k], percent(precision), percent(recall), percent(f1)];
    texts.forEach((text, column) => { row.cells[column + 1].textContent = text; });
  });
  const [x, bottom] = place(overview, threshold, 0), [, top] = place(overview, threshold, 1);
  for (const [name, value] of Object.entries({ x1: x, x2: x, y1: bottom, y2: top })) line.setAttribute(name, value);
  for (const [figure, mark] of curves) {
    const k = Number(figure.dataset.label), { precision, recall } = figures(hits[k], falseAlarms[k], objects[k]);
    mark.setAttribute("r", Number.isFinite(precision) ? 5 : 0);
    const [cx, cy] = place(figure, recall, Number.isFinite(precision) ? precision : 0);
    mark.setAttribute("cx", cx);
    mark.setAttribute("cy", cy);
  }
}

slider.addEventListener("input", update);
for (const button of document.querySelectorAll("button[data-threshold]")) {
  button.addEventListener("click", () => {
    const wanted = Number(button.dataset.threshold), distance = value => Math.abs(value - wanted);
    slider.value = data.thresholds.reduce((best, value, i) => distance(value) < distance(data.thresholds[best]) ? i : best, 0);
    update();
  });
}
update();
