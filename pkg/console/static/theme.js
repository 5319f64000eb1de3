// Before anything is drawn: the theme that was chosen here. Without a choice the system's is used.
try {
  const theme = localStorage.getItem("edged-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is forbidden: the system's theme */ }
