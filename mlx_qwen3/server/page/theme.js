// Not a module: it runs before the page is drawn, so that a dark page does not flash white.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("mlx-qwen3/theme")) ?? "system";
} catch {
  document.documentElement.dataset.theme = "system"; // no storage, or a damaged value
}
