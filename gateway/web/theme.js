/* Applies the user's choice of colours before the page is drawn: a classic script, because modules run later. */
try {
  const theme = localStorage.getItem("samovar.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // The browser forbids storage: the colours follow the system.
}
